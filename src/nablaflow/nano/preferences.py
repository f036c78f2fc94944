"""Preferences over scenes with a known rule: large warm shapes on a dark background.

The rule stands in for a person: it compares two scenes and is now and then wrong where they are
close. The 200 pairs that ship with the package are ``draw_pairs(PAIRS, seed SEED)``; ``python -m
nablaflow.nano.judged FOLDER`` writes them as images to try `nablaflow reward fit` on, and
``nablaflow reward fit FOLDER --features nano --pessimism 1`` made the heads that ship beside them.
"""

from __future__ import annotations

import csv
import math
from dataclasses import fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.nano.scenes import RADIUS, SHADE, Scenes, sample_scenes

SHIPPED = Path(__file__).parent / "preferences.csv"
FITTED = Path(__file__).parent / "preference.safetensors"
WARMEST = 0.04  # turns: between red and orange
CERTAINTY = 8.0  # log-odds for each unit of utility; about one pair in forty goes against the rule
PAIRS, SEED = 200, 7  # of those that ship

_FIELDS = tuple(field.name for field in fields(Scenes))


def utility(scenes: Scenes) -> Float[Tensor, "n"]:
    """Warmth, size and darkness, each of mean 0 and standard deviation 1, added up."""

    def standard(value: Tensor, low: float, high: float) -> Tensor:
        return (value - (low + high) / 2) * (math.sqrt(12) / (high - low))

    warmth = math.sqrt(2) * (2 * math.pi * (scenes.hue - WARMEST)).cos()
    return warmth + standard(scenes.radius, *RADIUS) - standard(scenes.shade, *SHADE)


def draw_pairs(n: int, generator: torch.Generator) -> tuple[Scenes, Scenes]:
    """``n`` independent pairs (preferred, rejected), by Bradley-Terry odds of their utilities."""
    first, second = sample_scenes(n, generator), sample_scenes(n, generator)
    odds = CERTAINTY * (utility(first) - utility(second))
    swap = torch.rand(n, generator=generator) > odds.sigmoid()
    return _choose(swap, second, first), _choose(swap, first, second)


def _choose(swap: Tensor, yes: Scenes, no: Scenes) -> Scenes:
    return Scenes(**{f: torch.where(swap, getattr(yes, f), getattr(no, f)) for f in _FIELDS})


def shipped_pairs() -> tuple[Scenes, Scenes]:
    """The pairs that ship with the package."""
    with SHIPPED.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    preferred, rejected = (
        Scenes(**{f: _column([float(row[f"{side}_{f}"]) for row in table], f) for f in _FIELDS})
        for side in ("preferred", "rejected")
    )
    return preferred, rejected


def _column(values: list[float], field: str) -> Tensor:
    return torch.tensor(values).long() if field == "shape" else torch.tensor(values)


def write_shipped(path: Path, pairs: tuple[Scenes, Scenes]) -> None:
    """Write pairs as the attributes of their scenes."""
    columns = {
        f"{side}_{f}": getattr(scenes, f).tolist()
        for side, scenes in zip(("preferred", "rejected"), pairs, strict=True)
        for f in _FIELDS
    }
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        rows = zip(*columns.values(), strict=True)
        writer.writerows([f"{value:.6g}" for value in row] for row in rows)
