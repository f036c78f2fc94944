"""What tests of several files do with a trainer's updates."""

from __future__ import annotations

import pytest

from nablaflow.methods import ValueMatching
from nablaflow.settings import named_kinds
from nablaflow.training.loop import Trainer
from nablaflow.training.stepper import Record

TRAJECTORIES = 4  # of one update of the settings of `tests.support.tiny_run`

ESTIMATING = {
    "adjoint-matching": ["method=adjoint-matching"],
    "strided": ["method=adjoint-matching", "method.stride=3"],
    "terminal": ["method=terminal"],
    "nabla-td": ["method=nabla-td"],
    "path-weighted-matching": ["method=path-weighted-matching"],
    **{
        f"value-matching {name}": ["method=value-matching", f"method.estimator={name}"]
        for name in named_kinds(ValueMatching, "estimator") or {}
    },
}
"""Settings of each method with an estimator of value gradients, by a name for them."""


def figures(record: Record) -> Record:
    return {name: value for name, value in record.items() if not name.endswith("seconds")}


def train(trainer: Trainer, updates: int = 3) -> list[Record]:
    return [figures(trainer.step()) for _ in range(updates)]


def assert_close(records: list[Record], expected: list[Record]) -> None:
    """Up to rounding: of the first update as it is, then as Adam's first steps make it.

    They divide small gradients by themselves; 1e-4 of a figure was seen after three updates.
    """
    assert len(records) == len(expected)
    for record, wanted in zip(records, expected, strict=True):
        rel = 1e-5 if record["update"] == 1 else 1e-3
        assert record == pytest.approx(wanted, rel=rel, abs=1e-7)
