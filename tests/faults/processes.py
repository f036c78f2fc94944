"""Work in a process of its own that may die, and what must be left of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nablaflow.storage.checkpoint import list_checkpoints, load_checkpoint
from nablaflow.storage.records import read_records

OPERATIONS = ("open", "replace", "mkdir", "unlink", "rmdir", "fsync")
Count = Callable[[], None]


def watched(on_operation: Count) -> None:
    """Call before each operation on files by this process."""
    for name in OPERATIONS:
        original = getattr(os, name)

        def operation(*given: Any, _original: Any = original, **named: Any) -> Any:
            on_operation()
            return _original(*given, **named)

        setattr(os, name, operation)


def in_a_process(work: Callable[[], object], on_operation: Count) -> int:
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


def operations_of(work: Callable[[], object], counter: Path) -> int:
    """How many there are in a run that nothing happens to."""
    counter.write_bytes(b"")
    number = os.open(counter, os.O_WRONLY | os.O_APPEND)
    write = os.write
    assert in_a_process(work, lambda: write(number, b".") and None) == 0
    os.close(number)
    return counter.stat().st_size


def assert_same_run(found: Path, wanted: Path) -> None:
    first, second = (load_checkpoint(list_checkpoints(run)[-1]) for run in (found, wanted))
    assert first.update == second.update
    for name, value in second.tensors["policy"].items():
        assert torch.equal(first.tensors["policy"][name], value), name
    updates = [record["update"] for record in read_records(found)]
    assert updates == [record["update"] for record in read_records(wanted)]
    assert not list(found.rglob("*.partial*"))


def nothing() -> None:
    """What happens at an operation that nothing happens at."""
