"""benchmarks/update_cost.py: an update makes the passes that its method needs, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from nablaflow.config.parse import parse_config
from nablaflow.runs.setup import prepare
from tests.support.benchmarks import benchmark

COST = benchmark("update_cost")


@pytest.mark.parametrize("name", COST.METHODS)
def test_an_update_makes_the_passes_that_are_needed(name: str, settings: dict[str, Any]):
    config = parse_config({**settings, "method": {**COST.METHODS[name], "beta": 1.0}})
    parts = prepare(config, config.output_dir)
    made, trained = COST.made(parts)
    assert made == COST.needed(name, parts, trained)
