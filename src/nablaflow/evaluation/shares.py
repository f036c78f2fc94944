"""Work on rows, dealt out to the processes of a run; all of them must take part in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object

from nablaflow.memory import in_parts
from nablaflow.progress import Done

T = TypeVar("T")


def in_shares(
    work: Callable[[slice], T], n: int, size: int, setting: str, on_progress: Done
) -> list[T]:
    """``work`` on ``n`` rows, each process on its own; the parts of all, in the rows' order.

    Args:
        work: gives what can be sent to other processes: tensors on the processor, say.
        size: rows at once, less where memory runs out.
        setting: what the size is called, for the user.
        on_progress: told how many more are done, as if all were as far as this process.
    """
    process, processes = _place()
    start, stop = n * process // processes, n * (process + 1) // processes
    own: list[T] = []
    done = told = 0

    def part(rows: slice) -> tuple[T, int]:
        found = work(slice(start + rows.start, start + rows.stop))
        return found, rows.stop - rows.start

    for found, rows in in_parts(part, stop - start, size, setting):
        own.append(found)
        done += rows
        so_far = n * done // (stop - start)
        on_progress(so_far - told)
        told = so_far
    return own if processes == 1 else _of_all(own)


def all_of_them(flag: bool) -> bool:
    """Whether it is set on every process."""
    return flag if _place()[1] == 1 else all(_of_all([flag]))


def _place() -> tuple[int, int]:
    """Which process this is, and of how many."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return 0, 1
    return group.get_rank(), group.get_world_size()


def _of_all(own: list[T]) -> list[T]:
    found: Any = gather_object(own)
    return found
