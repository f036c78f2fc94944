"""Figures with their errors, as text.

The report's own rules, which a test holds these to; to load the report takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nablaflow.report.digits import is_told, to_the_error

MISSING = "\N{EN DASH}"
LABELS = {
    "reward_mean": ("mean reward", "in the reward's own unit"),
    "diversity": ("diversity within a prompt", "mean distance between two images of a prompt"),
    "distance_to_reference": (
        "distance to the reference",
        "Fréchet distance; how far the prior has moved",
    ),
    "distance_to_tilt": ("distance to the exact tilt", "energy distance; 0 is the goal"),
}
CURVES = {
    "reward": "mean reward",
    "loss": "loss",
    "kl": "divergence of the paths",
    "diversity": "diversity, as a share of the reference's",
    "held_out": "held-out reward",
}
NO_FIGURES = ("n", "effective_sample_size")


def plus_minus(column: Any, key: str) -> str:
    """A figure of a column with its standard error, both to the error's second digit."""
    found: Mapping[str, Any] = column if isinstance(column, Mapping) else {}
    value, se = found.get(key), found.get(f"{key}_se")
    if not isinstance(value, int | float):
        return MISSING
    if not isinstance(se, int | float) or not is_told(se, value):
        return f"{value:.4g}"
    return " ± ".join(to_the_error(se, value, se))


def share(column: Any, key: str) -> str:
    """A figure that is a share, with its error, in percent."""
    found: Mapping[str, Any] = column if isinstance(column, Mapping) else {}
    value, se = found.get(key), found.get(f"{key}_se")
    if not isinstance(value, int | float):
        return MISSING
    error = f" ± {100 * se:.0f}" if isinstance(se, int | float) else ""
    return f"{100 * value:.0f}{error} %"


def further(columns: Mapping[str, Any]) -> list[str]:
    """Names of the figures that a summary has besides those of every run."""
    keys = [key for column in columns.values() if isinstance(column, Mapping) for key in column]
    names = dict.fromkeys(key for key in keys if not key.endswith("_se"))
    return [name for name in names if name not in LABELS and name not in NO_FIGURES]
