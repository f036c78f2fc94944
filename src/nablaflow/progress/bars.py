"""Work as bars on a terminal or in a notebook."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from nablaflow.progress.work import Work


class Bars:
    """A bar for each piece of work."""

    def __init__(self, console: Console) -> None:
        self._shown = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}left", markup=False),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[Work, TaskID] = {}

    def begin(self, work: Work) -> None:
        self._shown.start()  # not before, so that no work leaves no empty line
        unit = f"{work.unit}, " if work.unit else ""
        self._tasks[work] = self._shown.add_task(
            work.what, total=work.total, completed=work.done, unit=unit
        )

    def change(self, work: Work) -> None:
        told = f"{work.what}: {work.note}" if work.note else work.what
        self._shown.update(self._tasks[work], completed=work.done, description=told)

    def end(self, work: Work) -> None:
        task = self._tasks.pop(work)
        if work.inner:
            self._shown.remove_task(task)
        else:
            self._shown.stop_task(task)

    def say(self, line: str) -> None:
        self._shown.console.print(line, markup=False, highlight=False)

    def close(self, *, stopped: bool) -> None:
        self._shown.stop()
