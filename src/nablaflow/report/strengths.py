"""A policy's figures by its strength, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nablaflow.report.table import MISSING, plus_minus

_COLUMNS = {
    "reward_mean": "mean reward",
    "diversity": "diversity",
    "distance_to_tilt": "distance to tilt",
}


def strength_table(strengths: Mapping[str, Any]) -> Group:
    """For a terminal: a line for each strength, and which is at the tilt's mean reward.

    Args:
        strengths: as ``nablaflow eval --strength … --json`` has them.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="")
    for heading in ("strength", *_COLUMNS.values(), "of the way, %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in strengths["rows"]:
        figures = (plus_minus(row.get(name), row.get(f"{name}_se")) for name in _COLUMNS)
        table.add_row(f"{row['strength']:g}", *figures, _way(row))
    return Group(table, Text(f"\n{_at_tilt(strengths)}"))


def _way(row: Mapping[str, Any]) -> str:
    if row["closing"] is None:
        return MISSING
    return f"{100 * row['closing']:.0f} ± {100 * row['closing_se']:.0f}"


def _at_tilt(strengths: Mapping[str, Any]) -> str:
    if strengths["at_tilt"] is not None:
        found = plus_minus(strengths["at_tilt"], strengths["at_tilt_se"])
        return (
            f"The exact tilt's mean reward is reached at strength {found}, on straight lines "
            "between these; sample and export take it by --strength."
        )
    if all(row["closing"] is None for row in strengths["rows"]):
        return (
            "No strength can be named that reaches the exact tilt: there are no figures of it, or "
            "its mean reward is within two errors of the reference's."
        )
    return "None of these strengths, nor any between them, reaches the exact tilt's mean reward."
