"""The figures of a study of exact problems as a table for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nablaflow.exact.random_problems import random_number
from nablaflow.report.table import MISSING

Row = Mapping[str, Any]
"""Figures of one training, as `nablaflow.exact.Result.row` has them."""

_LABEL = 17  # characters of a method's name on one line, so that the table fits in 80 columns


@dataclass(frozen=True)
class TableColumn:
    """One figure.

    Attributes:
        heading: above it, one word a line.
        value: of a row; None where it is not known.
        exact: the same for exact samples.
        show: the figure as text.
        across: it means the same on every problem.
    """

    heading: str
    value: Callable[[Row], float | None]
    exact: Callable[[Row], float | None]
    show: Callable[[float], str]
    across: bool = False


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    median: float
    least: float
    most: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median and range over what is known; None where nothing is.

    A figure that is not finite is unknown, and one unknown makes all of them so: a median over
    the seeds that went well would hide the others.
    """
    known = list(values)
    if not known or any(value is None for value in known):
        return None
    finite = [value for value in known if value is not None]
    return Spread(median(finite), min(finite), max(finite))


def over_floor(row: Row) -> float | None:
    """Energy distance as a multiple of what two exact samples have."""
    return None if row["energy_distance"] is None else row["energy_distance"] / row["floor"]


def significant(value: float) -> str:
    """To three digits, without an exponent up to a million.

    >>> [significant(value) for value in (0.012345, 1.0, 123.4, 12345.6)]
    ['0.0123', '1.00', '123', '12,346']
    """
    whole = 1000 <= abs(value) < 1e6
    return f"{value:,.0f}" if whole else f"{value:#.3g}".removesuffix(".")


def groups(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by problem and method, in the order in which they come."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row["problem"], {}).setdefault(row["method"], []).append(row)
    return found


def exact_table(rows: Sequence[Row]) -> Group:
    """For a terminal of 80 columns or more: ``Console().print(exact_table(rows))``."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="")
    table.add_column("", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.heading, justify="right", vertical="bottom", no_wrap=True)
    for problem, methods in groups(rows).items():
        _add_problem(table, problem, methods)
    _add_family(table, [row for row in rows if random_number(row["problem"]) is not None])
    return Group(table, *(Text(f"\n{note}") for note in notes(rows)))


def notes(rows: Sequence[Row]) -> list[str]:
    """What the figures mean, below the table."""
    sizes = ", ".join(f"{n:,}" for n in sorted({row["n"] for row in rows}))
    found = [
        "The row of exact samples is what a perfect method has. The floor is the energy distance "
        f"to expect between two exact samples of {sizes} points, 2 E|X - X'| / n.",
        "Passes, in millions: one forward or one backward pass of one state through the denoiser "
        "or the flow network is 1; of training, as are the seconds, or of sampling where nothing "
        "trains.",
    ]
    seeds = len({row["seed"] for row in rows})
    return [f"Medians over {seeds} seeds, with their range below.", *found] if seeds > 1 else found


def _add_problem(table: Table, problem: str, methods: Mapping[str, Sequence[Row]]) -> None:
    table.add_section()
    everything = [row for rows in methods.values() for row in rows]
    exact = [spread(column.exact(row) for row in everything) for column in COLUMNS]
    table.add_row(Text(f"{problem}: exact", "bold"), *_cells(exact, "median", "bold"))
    for method, rows in methods.items():
        found = [spread(column.value(row) for row in rows) for column in COLUMNS]
        table.add_row(in_lines(method), *_cells(found, "median"))
        if len(rows) > 1:
            table.add_row(Text("  least", "dim"), *_cells(found, "least", "dim"))
            table.add_row(Text("  most", "dim"), *_cells(found, "most", "dim"))


def _add_family(table: Table, rows: Sequence[Row]) -> None:
    """Median and worst over the random problems and their seeds, of what can be compared."""
    problems, methods = len(groups(rows)), dict.fromkeys(row["method"] for row in rows)
    if problems < 2:
        return
    table.add_section()
    table.add_row(Text(f"{problems} random", "bold"), style="bold")
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        found = [spread(map(column.value, own)) if column.across else None for column in COLUMNS]
        table.add_row(in_lines(method), *_cells(found, "median"))
        table.add_row(Text("  worst", "dim"), *_cells(found, "most", "dim"))


def _cells(spreads: Iterable[Spread | None], which: str, style: str = "") -> list[Text]:
    return [
        Text(MISSING if found is None else column.show(getattr(found, which)), style)
        for column, found in zip(COLUMNS, spreads, strict=True)
    ]


def in_lines(method: str) -> str:
    """A method's name in lines, with breaks before hyphens."""
    words = method.replace("-", " -")
    lines = textwrap.wrap(words, _LABEL + words.count(" "), break_on_hyphens=False)
    return "\n".join(line.replace(" ", "") for line in lines)


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.1e}"


def _key(name: str, factor: float = 1.0) -> Callable[[Row], float | None]:
    return lambda row: None if row[name] is None else row[name] * factor


def _unknown(row: Row) -> None:
    return None


COLUMNS = (
    TableColumn("energy\ndistance", _key("energy_distance"), _key("floor"), significant),
    TableColumn("times\nfloor", over_floor, lambda row: 1.0, significant, across=True),
    TableColumn(
        "sliced\nW2", _key("sliced_wasserstein"), _key("sliced_wasserstein_floor"), significant
    ),
    TableColumn("weight\nerror", _key("mode_weight_error"), _unknown, _fixed(3), across=True),
    TableColumn("mean\nreward", _key("reward_mean"), _key("target_reward_mean"), _fixed(3)),
    TableColumn("log\ndet", _key("log_det"), _key("target_log_det"), _fixed(2)),
    TableColumn(
        "passes\n(M)", _key("network_evaluations", 1e-6), _unknown, significant, across=True
    ),
    TableColumn("time\n(s)", _key("seconds"), _unknown, _fixed(0), across=True),
)
