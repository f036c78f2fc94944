"""The demo on the embedded model, shortened: reward rises, and the scenes stay scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from nablaflow import nano

Cli = Callable[..., Result]


@pytest.fixture
def _nano_is_there():
    if not (nano.path() / "model_index.json").is_file():
        pytest.fail(f"{nano.path()} holds no model: run python -m nablaflow.nano.pretrain")


def test_the_demo_has_two_models_and_names_them(cli: Cli):
    assert "--model" in cli("demo", "--help").stdout
    refused = cli("demo", "--model", "flwo")
    assert refused.exit_code == 2
    assert "--model: 'flwo' is none of the demo's; did you mean flow?" in refused.stderr


def test_the_flow_matching_model_makes_an_update_and_is_measured(cli: Cli, here: Path):
    result = cli(
        "demo",
        *("--model", "flow", "output_dir=run", "guard=null"),
        *("training.updates=1", "training.images_per_prompt=2", "training.prompts_per_update=2"),
        *("sampler.steps=4", "training.transition_fraction=0.5"),
        *("method.value=contrastive", "training.value_samples=64"),
        *("evaluation.n=8", "evaluation.bank=16"),
    )
    assert result.exit_code == 0, result.stderr
    config = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert (config["model"], config["sampler"]["name"]) == ("flow", "memoryless")
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["updates"] == 1
    assert {"reference", "policy", "exact_tilt"} <= summary.keys()
    assert (here / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    sampled = cli("sample", "run", "--sampler", "euler", "--n", "2", "--out", "images")
    assert sampled.exit_code == 0, sampled.stderr


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
