"""Work that runs out of memory is done again in smaller parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from nablaflow.errors import TrainingStopped

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator, or the processor's allocator, ran out of memory."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in words
    )


def halving(work: Callable[[int], T], size: int, setting: str) -> tuple[T, int]:
    """``work(size)``, with half the size after each time that memory runs out.

    Args:
        setting: what the size is called, for the user.

    Returns:
        What the work returned, and the size with which it did.

    Raises:
        TrainingStopped: memory runs out at size 1.
    """
    while True:
        try:
            return work(size), size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise TrainingStopped(
                    f"{setting}: out of memory with 1; set training.gradient_checkpointing=true, "
                    "a smaller model, or more processes"
                ) from error
        # Only here is the error gone, and with it the tensors that its frames held.
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"out of memory: {setting} is now {size}", file=sys.stderr)


def in_parts(work: Callable[[slice], T], n: int, size: int, setting: str) -> Iterator[T]:
    """``work`` on ``n`` rows, as many at once as fit, ``size`` at most."""
    start = 0
    while start < n:
        part, size = halving(
            lambda rows, first=start: work(slice(first, min(first + rows, n))), size, setting
        )
        yield part
        start += min(size, n - start)
