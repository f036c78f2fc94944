"""Memory: work that runs out of it is done again in smaller parts, and what is freed is kept."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from nablaflow.errors import TrainingStopped

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator, or the processor's allocator, ran out of memory."""
    words = str(error).lower()
    said = "allocate memory" in words or "out of memory" in words  # the processor's; Apple's GPU
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and said)


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


def keep_freed_memory() -> bool:
    """On Linux with glibc, serve large tensors from the heap and keep the heap.

    By default each tensor beyond 32 MB is mapped and unmapped anew, and the kernel zeroes all of
    its pages: a third of an update of 128 transitions (docs/benchmarks.md).

    Returns:
        Whether it was done; elsewhere nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
