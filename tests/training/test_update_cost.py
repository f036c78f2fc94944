"""benchmarks/update_cost.py: an update makes the passes that its method needs, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nablaflow.config.parse import parse_config
from nablaflow.runs.setup import prepare
from tests.support.benchmarks import benchmark

COST = benchmark("update_cost")


def test_the_rate_is_of_the_precision_and_of_matrices_that_fill_the_device(
    monkeypatch: pytest.MonkeyPatch,
):
    made: list[tuple[int, torch.dtype]] = []
    ones = torch.ones

    def noted(*size: int, **options: Any) -> torch.Tensor:
        made.append((size[0], options["dtype"]))
        return ones(*size, **options)

    monkeypatch.setattr(torch, "ones", noted)
    times = iter([0.0, 2.0, 2.0, 3.0])
    monkeypatch.setattr(COST, "clock", lambda device: next(times))
    rate = COST.matrix_rate(torch.device("cpu"), torch.bfloat16, size=64, repeats=2)
    assert rate == 2 * 64**3, "the best of the tries, of one second"
    assert made == [(64, torch.bfloat16)]
    assert COST.SIDE["cuda"] == 8192


@pytest.mark.parametrize("name", COST.METHODS)
def test_an_update_makes_the_passes_that_are_needed(name: str, settings: dict[str, Any]):
    config = parse_config({**settings, "method": {**COST.METHODS[name], "beta": 1.0}})
    parts = prepare(config, config.output_dir)
    made, trained = COST.made(parts)
    assert made == COST.needed(name, parts, trained)


def test_the_rate_is_of_a_whole_round_of_updates_that_share_a_rollout(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """The first of them has the rollout's passes, and the others the same seconds less."""
    values = {**settings, "method": {**COST.METHODS["residual-nabla-db"], "beta": 1.0}}
    config = parse_config({**values, "flow": None})
    assert config.updates_per_rollout == 4
    made: list[int] = []
    monkeypatch.setattr(COST, "prepared", lambda *_: prepare(config, config.output_dir))
    monkeypatch.setattr(COST, "steps", lambda parts, updates: made.append(updates))
    monkeypatch.setattr(COST, "clock", lambda device: 8.0 * len(made))
    monkeypatch.setattr(COST, "matrix_rate", lambda *_: 1e9)
    found = COST.measure("residual-nabla-db", [])
    assert (made, found["seconds"]) == ([4, 4], 2.0)
    assert found["made"] == found["needed"]
