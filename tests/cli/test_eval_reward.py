"""`nablaflow eval`: which images the reward scores, and that it is one reward for all rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from nablaflow.evaluation.protocol import carry_out
from nablaflow.rewards import NamedReward
from nablaflow.runs import evaluate
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
TRAINING = ("training.updates=3", "training.checkpoint_every=1", "training.keep_checkpoints=3")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every image that the reward scores for the protocol, in order."""
    images: list[torch.Tensor] = []
    detailed = NamedReward.detailed

    def watch(reward: NamedReward, pictures: torch.Tensor, prompts: list[str]) -> Any:
        images.extend(pictures.clone())
        return detailed(reward, pictures, prompts)

    def counted(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(NamedReward, "detailed", watch)
            return carry_out(*args)

    monkeypatch.setattr(evaluate, "carry_out", counted)
    return images


def test_each_image_of_a_row_is_scored_once_and_no_other(recipe: Path, cli: Cli, scored):
    assert cli("train", recipe, *TRAINING, "evaluation.bank=0").exit_code == 0
    result = cli("eval", "run", "--n", 8, "--metrics", "reward,diversity,mmd", "--plot", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["protocol"]["rows"]
    assert len(rows) == 4
    assert len(scored) == 8 * len(rows)
    assert len({image.numpy().tobytes() for image in scored}) == len(scored)


def test_a_reward_that_remembers_is_the_last_checkpoints_in_every_row(recipe, here, cli: Cli):
    spec = "reward={name: normalized, of: warmth, window: 6}"
    rate = "optimizer.learning_rate=1e-6"  # the images stay, so that the rewards must
    trained = cli("train", recipe, *TRAINING, rate, spec, "evaluation.bank=0")
    assert trained.exit_code == 0, trained.stderr
    windows = [load_checkpoint(f).state["reward"] for f in list_checkpoints(here / "run")]
    means = [next(iter(window.values())).mean().item() for window in windows]
    assert abs(means[0] - means[-1]) > 1e-3
    found = json.loads(cli("eval", "run", "--n", 8, "--metrics", "reward", "--json").stdout)
    values = [row["reward"]["value"] for row in found["protocol"]["rows"]]
    assert values == pytest.approx([values[0]] * 4, abs=1e-2)
