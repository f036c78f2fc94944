"""Checkpoints: whole or not there at all, and nothing in them that runs code."""

from __future__ import annotations

import math
import os
import random
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.storage import checksums
from nablaflow.storage.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_policy,
    save_best,
    save_checkpoint,
)
from nablaflow.storage.lock import held
from nablaflow.storage.manifest import DamagedCheckpoint, list_checkpoints
from nablaflow.storage.naming import keep_name
from nablaflow.storage.whole import (
    checkpoint_to_resume,
    last_whole,
    retire_after,
    steady,
    whole_checkpoints,
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


def test_a_fault_that_is_not_the_disks_is_not_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    save_checkpoint(tmp_path, example(1), keep=1)
    monkeypatch.setattr("nablaflow.storage.checkpoint.save_file", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        save_checkpoint(tmp_path, example(2), keep=1)
    assert names(tmp_path) == ["step-000001"], "nothing half-written stays"


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
def test_a_missing_file_is_named(tmp_path: Path, file: str):
    folder = save_checkpoint(tmp_path, example(7), keep=1)
    (folder / file).unlink()
    with pytest.raises(UserError, match=rf"step-000007 .*it has no {re.escape(file)}\)"):
        load_checkpoint(folder)


def test_a_flipped_bit_anywhere_is_damage(tmp_path: Path):
    folder = save_checkpoint(tmp_path, example(7), keep=1)
    draw = random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(DamagedCheckpoint, match="step-000007") as caught:
                load_checkpoint(folder)
            assert_one_line(caught.value)
        path.write_bytes(whole)
    assert_same(load_checkpoint(folder), example(7))


def test_a_flipped_bit_in_the_policy_is_damage_where_only_that_is_read(tmp_path: Path):
    folder = save_checkpoint(tmp_path, example(7), keep=1)
    whole = (folder / "policy.safetensors").read_bytes()
    (folder / "policy.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedCheckpoint, match=r"policy\.safetensors"):
        load_policy(folder)


def test_the_folders_name_and_the_update_in_it_must_agree(tmp_path: Path):
    folder = save_checkpoint(tmp_path, example(7), keep=1)
    with pytest.raises(DamagedCheckpoint, match="update 7"):
        load_checkpoint(folder.rename(folder.with_name("step-000009")))


def test_a_policy_that_is_not_finite_is_never_used(tmp_path: Path):
    spoiled = example(7)
    spoiled.tensors["policy"]["a"][0, 0] = math.nan
    folder = save_checkpoint(tmp_path, spoiled, keep=1)
    for read in (load_checkpoint, load_policy):
        with pytest.raises(DamagedCheckpoint, match="not finite"):
            read(folder)


def test_a_name_in_the_manifest_never_becomes_a_path(tmp_path: Path):
    folder = save_checkpoint(tmp_path, example(7), keep=1)
    manifest = checksums.unseal((folder / "progress.json").read_text())
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((folder / "policy.safetensors").read_bytes())
    manifest["groups"].append("../../outside")
    manifest["files"]["../../outside.safetensors"] = checksums.of_file(outside)
    (folder / "progress.json").write_text(checksums.sealed(manifest))
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(folder)


# --- which one is used ----------------------------------------------------------------------------


def spoil(folder: Path) -> None:
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def test_the_checkpoint_before_a_damaged_one_is_used_and_both_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for update in (2, 4, 6):
        folder = save_checkpoint(tmp_path, example(update), keep=3)
    spoil(folder)
    found = checkpoint_to_resume(tmp_path)
    assert found is not None
    assert_same(found, example(4))
    told = capsys.readouterr().err
    assert "step-000006" in told
    assert "step-000004 is used" in told
    retire_after(tmp_path, 4)
    assert names(tmp_path) == ["damaged-000006", "step-000002", "step-000004"]


def test_damaged_ones_among_others_are_left_out(tmp_path: Path):
    for update in (2, 4, 6):
        save_checkpoint(tmp_path, example(update), keep=3)
    spoil(tmp_path / "checkpoints" / "step-000004")
    read: list[str] = []

    def load(folder: Path) -> Checkpoint:
        read.append(folder.name)
        return load_checkpoint(folder)

    found = dict(whole_checkpoints(tmp_path, load))
    assert [path.name for path in found] == ["step-000002", "step-000006"]
    assert_same(found[tmp_path / "checkpoints" / "step-000002"], example(2))
    assert sorted(read) == ["step-000002", "step-000004", "step-000006"], "each is read once"


def test_none_that_is_whole_is_refused(tmp_path: Path):
    spoil(save_checkpoint(tmp_path, example(2), keep=1))
    with pytest.raises(UserError, match="step-000002"):
        last_whole(tmp_path, load_checkpoint)


def test_a_reader_beside_a_run_finds_a_whole_checkpoint(tmp_path: Path):
    """What was listed is removed while it is read: the newer one is taken."""
    save_checkpoint(tmp_path, example(1), keep=1)
    tries: list[str] = []

    def read(folder: Path) -> Checkpoint:
        if not tries:
            save_checkpoint(tmp_path, example(2), keep=1)
        tries.append(folder.name)
        return load_checkpoint(folder)

    assert_same(last_whole(tmp_path, read), example(2))
    assert tries == ["step-000001", "step-000002"]


def test_what_is_measured_beside_a_running_training_stays_there(tmp_path: Path):
    for update in (1, 2):
        save_checkpoint(tmp_path, example(update), keep=2)
    with held(tmp_path), steady(tmp_path) as place:
        save_checkpoint(tmp_path, example(3), keep=1)
        found = list(whole_checkpoints(place, load_checkpoint))
        assert [path.name for path, _ in found] == ["step-000001", "step-000002"]
        assert_same(found[0][1], example(1))
    assert not place.exists()
    with steady(tmp_path) as place:
        assert place == tmp_path


def test_one_that_is_removed_while_it_is_kept_for_a_reader_makes_room_for_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_best(tmp_path, example(1))
    save_checkpoint(tmp_path, example(1), keep=1)
    link = os.link

    def slowly(source: Path, target: Path) -> None:
        if source.parent.name == "step-000001":
            save_checkpoint(tmp_path, example(2), keep=1)
        link(source, target)

    monkeypatch.setattr(os, "link", slowly)
    with held(tmp_path), steady(tmp_path) as place:
        assert [path.name for path in list_checkpoints(place)] == ["step-000002"]
        assert_same(last_whole(place, load_checkpoint), example(2))


def test_beside_a_run_without_a_checkpoint_a_reader_is_told_of_the_run(tmp_path: Path):
    with (
        held(tmp_path),
        steady(tmp_path) as place,
        pytest.raises(UserError, match=f"{tmp_path} has no checkpoint yet"),
    ):
        last_whole(place, load_checkpoint)


def test_a_seventh_digit_is_no_older_checkpoint(tmp_path: Path):
    """By name step-1000000 comes before step-999950."""
    for update in (999_900, 999_950, 1_000_000):
        save_checkpoint(tmp_path, example(update), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-999950", "step-1000000"]
    assert last_whole(tmp_path, load_checkpoint).update == 1_000_000


def test_beside_a_training_a_checkpoint_of_another_run_is_known(tmp_path: Path):
    run, other = tmp_path / "own", tmp_path / "other"
    for folder, update in ((run, 1), (other, 2)):
        folder.mkdir()
        keep_name(folder, folder.name)
        save_checkpoint(folder, example(update), keep=1)
    copied = "checkpoints/step-000002"
    shutil.copytree(other / copied, run / copied)
    with held(run), steady(run) as place:
        assert place != run
        with pytest.raises(DamagedCheckpoint, match="it is of another run"):
            load_policy(place / copied)
