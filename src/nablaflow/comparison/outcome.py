"""A finished comparison for one reward: its cells, and the exact tilt to hold them against."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow.comparison.figures import comparison_rows, front_area
from nablaflow.comparison.gauge import CURVE, Gauge
from nablaflow.metrics.summary import Column
from nablaflow.progress import StartProgress
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole

TILT = "tilt.json"


@dataclass(frozen=True)
class Outcome:
    """What a comparison found.

    Attributes:
        bank: images of the reference that the tilt and the distances are measured by.
        tilt: at ``beta``; None where the bank does not carry that far.
        tilt_curve: over beta, from the reference on: the best that any method can do.
        cells: as stored, one for each method and seed.
    """

    reward: str
    beta: float
    bank: int
    reference: Column
    tilt: Column | None
    tilt_curve: list[Column]
    cells: list[Mapping[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        """The exact tilt, where it is known, and then each method: the figures of the table."""
        front = self._front()
        rows = comparison_rows(self.cells, self.reference, self.tilt, front)
        known = [("reference", self.reference), ("exact tilt", self.tilt)]
        heads = [_head(name, column, self, front) for name, column in known if column is not None]
        return [{"reward": self.reward, "beta": self.beta, **row} for row in [*heads, *rows]]

    def _front(self) -> float:
        """Of the exact tilts up to this one."""
        upto = [c for c in self.tilt_curve if _number(c["beta"]) <= self.beta]
        return front_area(upto, self.reference, self.tilt) or 0.0

    def as_data(self) -> dict[str, Any]:
        """For a file: rows, curves and points."""
        names = ("method", "seed", "points", "calibrated", "curve", "diverged")
        return {
            "reward": self.reward,
            "beta": self.beta,
            "bank": self.bank,
            "reference": self.reference,
            "tilt": self.tilt,
            "tilt_curve": self.tilt_curve,
            "rows": self.rows(),
            "cells": [{name: cell.get(name) for name in names} for cell in self.cells],
        }


def _number(value: float | int | None) -> float:
    return float(value or 0.0)


def _head(name: str, column: Column, outcome: Outcome, front: float) -> dict[str, Any]:
    """A known distribution as a row."""
    cell = {"method": name, "seed": 0, "points": [column]}
    (row,) = comparison_rows([cell], outcome.reference, outcome.tilt, front)
    if name == "exact tilt" and row["hypervolume"] is not None:
        row["hypervolume"] = 1.0
    return row


def tilt_curve(gauge: Gauge, folder: Path, start: StartProgress) -> list[Column]:
    """The exact tilt over beta, from the folder if it is there."""
    path = folder / TILT
    bank = checksums.of_tensors(gauge.bank.tensors)
    settings = {"beta": gauge.beta, "multiples": list(CURVE), "bank": bank}
    if path.is_file():
        found = _curve_there(path)
        if found.get("settings") == settings:
            return found["curve"]
    curve = gauge.tilt_curve(start("measure the exact tilt", len(CURVE)))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, checksums.sealed({"settings": settings, "curve": curve}))
    return curve


def _curve_there(path: Path) -> dict[str, Any]:
    """What the file of the curve holds; nothing, and that is said, where it is damaged."""
    try:
        return checksums.checked(path.read_text(encoding="utf-8"))
    except ValueError:
        print(f"{path} is damaged; what it holds is made anew", file=sys.stderr)
        return {}


def outcome_of(gauge: Gauge, curve: list[Column], cells: list[Mapping[str, Any]]) -> Outcome:
    """Put together what was measured."""
    own = next((c for c in curve if c["beta"] == gauge.beta), None)
    reference = curve[0] if curve else gauge.reference()
    size = len(gauge.bank.samples)
    return Outcome(gauge.reward.name, gauge.beta, size, reference, own, curve, cells)
