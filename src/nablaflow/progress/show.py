"""Which way work is shown: by where standard error leads."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from nablaflow.progress.bars import Bars
from nablaflow.progress.lines import Lines
from nablaflow.progress.work import Display, Progress


def show(console: Console | None = None, log: Callable[[str], None] | None = None) -> Progress:
    """Bars on a terminal and in a notebook, lines in a file or a pipe.

    Args:
        console: default: standard error.
        log: writes a line to a file besides, whatever the console shows.
    """
    console = console or Console(stderr=True)
    displays: list[Display] = [Bars(console) if _has_bars(console) else _lines_on(console)]
    if log is not None:
        displays.append(Lines(log))
    return Progress(*displays)


def _has_bars(console: Console) -> bool:
    """A terminal whose cursor can move; colours that are forced into a file make it none."""
    if console.is_jupyter:
        return True
    return console.is_interactive and console.file.isatty()


def _lines_on(console: Console) -> Lines:
    def write(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.file.flush()

    return Lines(write)
