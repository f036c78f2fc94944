"""The demo on the embedded model, shortened: reward rises, and the scenes stay scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from nablaflow import nano

Cli = Callable[..., Result]


@pytest.fixture
def _nano_is_there():
    if not (nano.path() / "model_index.json").is_file():
        pytest.fail(f"{nano.path()} holds no model: run python -m nablaflow.nano.pretrain")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_nano_is_there")
def test_the_demo_raises_the_reward_and_keeps_the_diversity(cli: Cli, here: Path):
    result = cli(
        "demo",
        "output_dir=short",
        "training.updates=25",
        "evaluation.n=192",
    )
    assert result.exit_code == 0, result.stderr
    summary = json.loads((here / "short" / "summary.json").read_text())
    reference, policy, tilt = (summary[part] for part in ("reference", "policy", "exact_tilt"))
    gain = policy["reward_mean"] - reference["reward_mean"]
    error = (policy["reward_mean_se"] ** 2 + reference["reward_mean_se"] ** 2) ** 0.5
    assert gain > 4 * error
    assert gain > 0.3 * (tilt["reward_mean"] - reference["reward_mean"])
    assert policy["diversity"] > 0.6 * tilt["diversity"]
    assert policy["distance_to_tilt"] < reference["distance_to_tilt"]
    assert tilt["effective_sample_size"] >= 200
