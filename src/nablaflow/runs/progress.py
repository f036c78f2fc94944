"""How long work takes, shown while it is done."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


def progress_display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def starter(progress: Progress) -> Callable[[str, int], Callable[[int], None]]:
    """Shows each piece of work as a bar of its own."""

    def start(what: str, total: int) -> Callable[[int], None]:
        task = progress.add_task(what, total=total)
        return lambda done: progress.advance(task, done)

    return start
