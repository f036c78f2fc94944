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


def differences(found: Path, wanted: Path) -> list[str]:
    """What of a run is not bit for bit as it would have been, and what is left half written."""
    first, second = (load_checkpoint(list_checkpoints(run)[-1]) for run in (found, wanted))
    ours, theirs = first.tensors["policy"], second.tensors["policy"]
    told = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    told += [] if first.update == second.update else [f"update {first.update}"]
    updates = [[record["update"] for record in read_records(run)] for run in (found, wanted)]
    told += [] if updates[0] == updates[1] else [f"lines of updates {updates[0]}"]
    return told + [str(path) for path in found.rglob("*.partial*")]


def nothing() -> None:
    """What happens at an operation that nothing happens at."""
