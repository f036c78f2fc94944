"""The defaults on a model that nobody tuned for: the digits, where docs/benchmarks.md measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.rewards import NamedReward
from nablaflow.runs import align

DIGITS = Path(__file__).parents[2] / "benchmarks/models/digits"


def upper(images: Tensor, prompts: list[str]) -> Tensor:
    """Ink in the upper half less that in the lower half."""
    ramp = torch.linspace(8.0, -8.0, images.shape[2]).to(images)
    return (images.mean(1) * ramp[:, None]).mean((1, 2))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_by_the_defaults_ends_at_the_tilt(tmp_path: Path) -> None:
    """On a seed that is in no table: nine tenths of the way or more, and nothing else changed."""
    changes = [
        f"model={DIGITS}",
        "prompts=null",
        "sampler.steps=20",
        "training.prompts_per_update=1",
        "training.images_per_prompt=64",
        "training.trackers=[]",
        "evaluation.n=1024",
        "evaluation.batch=256",
        "evaluation.bank=4096",
        "guard=null",
        "seed=3",
        "reward=python:upper",
        f"output_dir={tmp_path / 'run'}",
    ]
    align.run(load_config(None, changes, demo_settings()), reward=NamedReward("upper", upper))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    policy, tilt = summary["policy"], summary["exact_tilt"]
    assert abs(summary["closing"] - 1.0) < 0.1 + 2.0 * summary["closing_se"]
    assert policy["distance_to_tilt"] < 3.0 * policy["distance_to_tilt_se"]
    assert policy["diversity"] == pytest.approx(tilt["diversity"], rel=0.03)
