"""What the pictures of a study of exact problems have in common: colours and signs."""

from __future__ import annotations

from collections.abc import Sequence

from nablaflow.report.curves import LIGHT
from nablaflow.report.exact_table import Row

INK, PAPER = "#1c1f24", "#ffffff"
TIMES = "\N{MULTIPLICATION SIGN}"
_FURTHER = ("#c2417c", "#5c7a12", "#14808f")  # for more methods than a report's curves have
_COLOURS = (*LIGHT.series[:4], *_FURTHER)


def method_colours(rows: Sequence[Row]) -> dict[str, str]:
    """The same for a method in every picture of a study."""
    names = dict.fromkeys(row["method"] for row in rows)
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
