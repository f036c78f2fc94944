"""Bars for work that names its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bars() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Bars on standard error for each part of the work."""
    from rich.console import Console

    from nablaflow.runs.progress import progress_display, starter

    with progress_display(Console(stderr=True)) as progress:
        yield starter(progress)
