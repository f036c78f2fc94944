"""What tests of several files do with a trainer's updates."""

from __future__ import annotations

import pytest

from nablaflow.training.loop import Trainer
from nablaflow.training.stepper import Record


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
