"""Checkpoints: whole or not there at all, and nothing in them that runs code."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.storage.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def example(update: int, size: int = 10) -> Checkpoint:
    generator = torch.Generator().manual_seed(update)
    values = torch.randn(size, size, generator=generator)
    tensors = {"policy": {"a": values, "b.c": values.T}, "flow": {"a": values.half()}}
    return Checkpoint(update, 1.5 * update, tensors, {"optimizer": {0: values}, "scaler": None})


def assert_same(found: Checkpoint, wanted: Checkpoint) -> None:
    assert (found.update, found.seconds) == (wanted.update, wanted.seconds)
    assert found.tensors.keys() == wanted.tensors.keys()
    for group, tensors in wanted.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(found.tensors[group][name], value)
    assert torch.equal(found.state["optimizer"][0], wanted.state["optimizer"][0])


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_reads_back_as_it_was(tmp_path: Path):
    folder = save_checkpoint(tmp_path, example(12), keep=2)
    assert folder == tmp_path / "checkpoints" / "step-000012"
    assert_same(load_checkpoint(folder), example(12))


def test_the_newest_are_kept_and_listed_oldest_first(tmp_path: Path):
    for update in (5, 10, 1000, 20):
        save_checkpoint(tmp_path, example(update), keep=4)
    save_checkpoint(tmp_path, example(1001), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-001000", "step-001001"]
    assert names(tmp_path) == ["step-001000", "step-001001"]


def test_a_checkpoint_of_the_same_update_is_replaced(tmp_path: Path):
    save_checkpoint(tmp_path, example(3), keep=2)
    newer = Checkpoint(3, 99.0, example(4).tensors, example(4).state)
    assert_same(load_checkpoint(save_checkpoint(tmp_path, newer, keep=2)), newer)
    assert names(tmp_path) == ["step-000003"]


def test_nothing_in_a_checkpoint_is_pickled_code(tmp_path: Path):
    folder = save_checkpoint(tmp_path, example(1), keep=1)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".pt", ".json"}
    assert torch.serialization.get_unsafe_globals_in_checkpoint(folder / "state.pt") == []


# --- a disk that is full --------------------------------------------------------------------------


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses to write more into one file, as it does when the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 300


def large_group(group: str) -> Checkpoint:
    """One file of it is larger than the limit of the test, the others are smaller."""
    small, large = example(2), torch.ones(300, 300)
    if group == "state":
        return Checkpoint(2, 3.0, small.tensors, {"optimizer": {0: large}})
    return Checkpoint(2, 3.0, {**small.tensors, group: {"a": large}}, small.state)


@pytest.mark.parametrize("group", ["policy", "flow", "state"])
def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path, group: str):
    save_checkpoint(tmp_path, example(1), keep=1)
    with files_no_larger_than(100_000), pytest.raises(UserError, match="output_dir") as caught:
        save_checkpoint(tmp_path, large_group(group), keep=1)
    assert_one_line(caught.value)
    assert names(tmp_path) == ["step-000001"], "nothing half-written stays"
    assert_same(load_checkpoint(list_checkpoints(tmp_path)[-1]), example(1))


@pytest.mark.parametrize("call", ["torch.save", "nablaflow.storage.checkpoint.save_file"])
def test_no_space_left_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    save_checkpoint(tmp_path, example(1), keep=1)
    monkeypatch.setattr(call, full)
    with pytest.raises(UserError, match=r"No space left on device.*--resume") as caught:
        save_checkpoint(tmp_path, example(2), keep=1)
    assert_one_line(caught.value)
    assert names(tmp_path) == ["step-000001"]


def test_what_a_crash_left_half_written_is_not_a_checkpoint(tmp_path: Path):
    save_checkpoint(tmp_path, example(1), keep=1)
    partial = tmp_path / "checkpoints" / ".partial-step-000002"
    partial.mkdir()
    (partial / "policy.safetensors").write_bytes(b"half")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001"]
    save_checkpoint(tmp_path, example(2), keep=1)
    assert names(tmp_path) == ["step-000002"]
    assert_same(load_checkpoint(list_checkpoints(tmp_path)[-1]), example(2))


# --- damage ---------------------------------------------------------------------------------------

FILES = ["policy.safetensors", "state.pt", "progress.json"]


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_named_with_a_remedy(tmp_path: Path, file: str):
    folder = save_checkpoint(tmp_path, example(7), keep=1)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"step-000007.*remove it") as caught:
        load_checkpoint(folder)
    assert_one_line(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_damage(tmp_path: Path, file: str):
    folder = save_checkpoint(tmp_path, example(7), keep=1)
    (folder / file).unlink()
    with pytest.raises(UserError, match="step-000007"):
        load_checkpoint(folder)
