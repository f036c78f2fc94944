"""A comparison of methods as a table for a terminal, or in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from nablaflow.metrics.catalog import METRICS
from nablaflow.report.exact_table import in_lines
from nablaflow.report.table import MISSING, plus_minus

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


def _in_own_unit(digits: int) -> Callable[[float, float | None], str]:
    """With an exponent where so many digits would leave nothing of a figure."""
    plain = _with_error(digits)

    def show(value: float, se: float | None) -> str:
        nothing = max(abs(value), se or 0.0) < 0.5 * 10.0**-digits
        return plus_minus(value, se) if nothing else plain(value, se)

    return show


def _plain(digits: int) -> Callable[[float, float | None], str]:
    return lambda value, se: f"{value:.{digits}f}"


HEADINGS = (
    Heading("reward", "reward_mean", _in_own_unit(3)),
    Heading("way\n%", "closing", _with_error(0, 100.0)),
    Heading("diver-\nsity", "diversity", _with_error(2)),
    Heading("to refe-\nrence", "distance_to_reference", _with_error(2)),
    Heading("to\ntilt", "distance_to_tilt", _with_error(3)),
    Heading("held\nout", "held_out", _in_own_unit(2)),
    Heading("front\n%", "hypervolume", _with_error(0, 100.0)),
    Heading("s to\n50 %", "seconds_to_50", _plain(0)),
    Heading("s to\n80 %", "seconds_to_80", _plain(0)),
    Heading("upd-\nates", "updates", _plain(0)),
)

STRENGTH = Heading("streng-\nth", "strength", _with_error(2))


def headings(rows: Sequence[Row]) -> list[Heading]:
    """Of every comparison, then the strength where it was found, and the metrics asked for."""
    known = {heading.key for heading in HEADINGS}
    found = any(row.get(STRENGTH.key) is not None for row in rows)
    further = [name for name in METRICS.keys() - known if any(f"{name}_se" in row for row in rows)]
    words = {name: METRICS[name].label.replace(" ", "\n") for name in further}
    more = [Heading(words[name], name, _with_error(3)) for name in sorted(further)]
    return [*HEADINGS, *([STRENGTH] if found else []), *more]


def comparison_table(title: str, rows: Sequence[Row]) -> Table:
    """For a terminal of 80 columns or more, errors below the figures.

    ``Console().print(comparison_table(reward, rows))``
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    columns = headings(rows)
    for heading in columns:
        table.add_column(heading.words, justify="right", vertical="top", no_wrap=True)
    for row in rows:
        table.add_row(_short(row), *(cell.replace(" ± ", "\n±") for cell in _cells(row, columns)))
    return table


def comparison_markdown(rows: Sequence[Row]) -> str:
    """The same for a page."""
    columns = headings(rows)
    heads = [heading.words.replace("-\n", "").replace("\n", " ") for heading in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    lines += [f"| {_label(row)} | " + " | ".join(_cells(row, columns)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _short(row: Row) -> str:
    name, diverged = str(row["method"]), row.get("diverged")
    lines = name if " " in name else in_lines(name)
    return f"{lines}\n({diverged} diverged)" if diverged else lines


def _label(row: Row) -> str:
    diverged = row.get("diverged")
    return f"{row['method']} ({diverged} diverged)" if diverged else str(row["method"])


def _cells(row: Row, columns: Sequence[Heading]) -> list[str]:
    return [
        MISSING
        if row.get(heading.key) is None
        else heading.show(row[heading.key], row.get(f"{heading.key}_se"))
        for heading in columns
    ]
