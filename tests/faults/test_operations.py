"""A run dies at each of its file operations, as by `kill -9`; what is left goes on, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nablaflow.config.overrides import apply_overrides
from nablaflow.config.recipe import Config, parse_config
from nablaflow.errors import UserError
from nablaflow.runs import align
from nablaflow.storage.checkpoint import list_checkpoints, load_checkpoint
from nablaflow.storage.records import read_records
from tests.faults.conftest import SHORT
from tests.support.tiny_run import unmeasured

OPERATIONS = ("open", "replace", "mkdir", "unlink", "rmdir", "fsync")
KILLED = 9
Count = Callable[[], None]


@pytest.fixture
def make(settings: dict[str, Any], here: Path) -> Callable[..., Config]:
    return lambda *more: parse_config(apply_overrides(settings, [*SHORT, *more]))


@pytest.fixture(autouse=True)
def _train_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The short form leaves out what comes after training, which takes longest."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(align, "finish", unmeasured)


def watched(on_operation: Count) -> None:
    """Call before each operation on files by this process."""
    for name in OPERATIONS:
        original = getattr(os, name)

        def operation(*given: Any, _original: Any = original, **named: Any) -> Any:
            on_operation()
            return _original(*given, **named)

        setattr(os, name, operation)


def in_a_process(work: Callable[[], None], on_operation: Count) -> int:
    """Exit status of a process of its own that does the work."""
    child = os.fork()
    if child == 0:
        try:
            watched(on_operation)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def operations_of(work: Callable[[], None], counter: Path) -> int:
    """How many there are in a run that nothing happens to."""
    counter.write_bytes(b"")
    number = os.open(counter, os.O_WRONLY | os.O_APPEND)
    write = os.write
    assert in_a_process(work, lambda: write(number, b".") and None) == 0
    os.close(number)
    return counter.stat().st_size


def killed_at(work: Callable[[], None], place: int) -> None:
    left = [place]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(KILLED)

    assert in_a_process(work, count) == KILLED


def assert_same_run(found: Path, wanted: Path) -> None:
    first, second = (load_checkpoint(list_checkpoints(run)[-1]) for run in (found, wanted))
    assert first.update == second.update
    for name, value in second.tensors["policy"].items():
        assert torch.equal(first.tensors["policy"][name], value), name
    updates = [record["update"] for record in read_records(found)]
    assert updates == [record["update"] for record in read_records(wanted)]
    assert not list(found.rglob("*.partial*"))


def places(total: int, request: pytest.FixtureRequest) -> list[int]:
    slow = request.node.get_closest_marker("slow") is not None
    return list(range(total)) if slow else list(range(0, total, max(1, total // 5)))


def begin_and_die(make: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    straight = make(f"output_dir={tmp_path}/straight")
    align.run(straight)
    total = operations_of(
        lambda: align.run(make(f"output_dir={tmp_path}/count")) and None, tmp_path / "counter"
    )
    assert total > 20
    for place in places(total, request):
        config = make(f"output_dir={tmp_path}/run-{place}")
        killed_at(lambda config=config: align.run(config) and None, place)
        resume = (config.output_dir / "config.yaml").is_file()
        align.run(config, resume=resume)
        assert_same_run(config.output_dir, straight.output_dir)


def replace_and_die(make: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The old run or the new one is there, whole, whenever the new one dies."""
    straight = make(f"output_dir={tmp_path}/straight")
    old = ("seed=7", "training.updates=1")
    align.run(straight)
    align.run(make(f"output_dir={tmp_path}/old", *old))
    count = make(f"output_dir={tmp_path}/count")
    align.run(make(f"output_dir={tmp_path}/count", *old))
    total = operations_of(lambda: align.run(count, overwrite=True) and None, tmp_path / "counter")
    for place in places(total, request):
        config = make(f"output_dir={tmp_path}/run-{place}")
        align.run(make(f"output_dir={config.output_dir}", *old))
        killed_at(lambda config=config: align.run(config, overwrite=True) and None, place)
        try:
            align.run(config, resume=True)
        except UserError:  # the new one had not begun: the old one is there
            align.run(make(f"output_dir={config.output_dir}", *old), resume=True)
            assert_same_run(config.output_dir, tmp_path / "old")
            align.run(config, overwrite=True)
        assert_same_run(config.output_dir, straight.output_dir)
        assert yaml.safe_load((config.output_dir / "config.yaml").read_text())["seed"] == 0
        assert not (config.output_dir / ".replaced").exists()


def test_a_run_that_begins(make: Any, tmp_path: Path, request: pytest.FixtureRequest):
    begin_and_die(make, tmp_path, request)


def test_a_run_that_replaces_another(make: Any, tmp_path: Path, request: pytest.FixtureRequest):
    replace_and_die(make, tmp_path, request)


@pytest.mark.slow
def test_a_run_that_begins_at_every_operation(
    make: Any, tmp_path: Path, request: pytest.FixtureRequest
):
    begin_and_die(make, tmp_path, request)


@pytest.mark.slow
def test_a_run_that_replaces_another_at_every_operation(
    make: Any, tmp_path: Path, request: pytest.FixtureRequest
):
    replace_and_die(make, tmp_path, request)
