"""Keeps the C library from handing memory back to the kernel after every large tensor."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


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
