"""A comparison of methods as a table for a terminal, or in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from nablaflow.report.table import MISSING

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Heading:
    """One figure: its words, one a line, its key in a row, and how it is shown."""

    words: str
    key: str
    show: Callable[[float, float | None], str]


def _with_error(digits: int, scale: float = 1.0) -> Callable[[float, float | None], str]:
    def show(value: float, se: float | None) -> str:
        text = f"{scale * value:.{digits}f}"
        return text if not se else f"{text} ± {scale * se:.{digits}f}"

    return show


def _plain(digits: int) -> Callable[[float, float | None], str]:
    return lambda value, se: f"{value:.{digits}f}"


HEADINGS = (
    Heading("reward", "reward_mean", _with_error(3)),
    Heading("of the way\n%", "closing", _with_error(0, 100.0)),
    Heading("diversity", "diversity", _with_error(2)),
    Heading("Fréchet to\nreference", "distance_to_reference", _with_error(2)),
    Heading("distance\nto tilt", "distance_to_tilt", _with_error(3)),
    Heading("held\nout", "held_out", _with_error(2)),
    Heading("front\n%", "hypervolume", _with_error(0, 100.0)),
    Heading("s to\n50 %", "seconds_to_50", _plain(0)),
    Heading("s to\n80 %", "seconds_to_80", _plain(0)),
    Heading("updates", "updates", _plain(0)),
)


def comparison_table(title: str, rows: Sequence[Row]) -> Table:
    """For a terminal: ``Console().print(comparison_table(reward, rows))``."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading.words, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(_label(row), *_cells(row))
    return table


def comparison_markdown(rows: Sequence[Row]) -> str:
    """The same for a page."""
    heads = [heading.words.replace("\n", " ") for heading in HEADINGS]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    lines += [f"| {_label(row)} | " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _label(row: Row) -> str:
    diverged = row.get("diverged")
    return f"{row['method']} ({diverged} diverged)" if diverged else str(row["method"])


def _cells(row: Row) -> list[str]:
    return [
        MISSING
        if row.get(heading.key) is None
        else heading.show(row[heading.key], row.get(f"{heading.key}_se"))
        for heading in HEADINGS
    ]
