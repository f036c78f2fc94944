"""Methods that differentiate the end of sampling, in the loop that runs them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.rewards import NamedReward, load
from nablaflow.runs.setup import Parts, prepare
from tests.training.updates import assert_close, train

RECIPES = Path(__file__).parents[2] / "recipes"
MakeParts = Callable[..., Parts]
METHODS = {
    "refl": ["method=refl", "method.last=0.5"],
    "draft": ["method=draft", "method.k=2", "method.kl_weight=0.5"],
    "draft-lv": ["method=draft", "method.low_variance_samples=2"],
    "alignprop": ["method=alignprop"],
}


@pytest.mark.parametrize("name", METHODS)
def test_it_trains(make_parts: MakeParts, name: str):
    trainer = make_parts(*METHODS[name], "method.beta=100.0").trainer
    before = copy.deepcopy(trainer.checkpoint().tensors)
    records = [trainer.step() for _ in range(2)]
    after = trainer.checkpoint().tensors
    moved = [
        not torch.equal(before["policy"][key], after["policy"][key]) for key in before["policy"]
    ]
    assert any(moved)
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[0]["value_gradient_norm"] > 0
    assert "flow" not in after
    assert "estimate_seconds" not in records[0]
    assert any(
        not torch.equal(before["policy"][key], after["policy"][key]) for key in after["policy"]
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_split_does_not_change_the_figures(make_parts: MakeParts, name: str):
    whole = train(make_parts(*METHODS[name]).trainer, 2)
    split = ["training.micro_batch=3", "training.rollout_batch=1"]
    assert_close(train(make_parts(*METHODS[name], *split).trainer, 2), whole)


def test_layers_that_are_checkpointed_inside_steps_that_are_change_nothing(make_parts: MakeParts):
    plain = train(make_parts(*METHODS["draft"], "method.checkpointing=false").trainer, 2)
    for extra in ([], ["training.gradient_checkpointing=true"]):
        assert_close(train(make_parts(*METHODS["draft"], *extra).trainer, 2), plain)


def test_guidance_is_in_the_replay_too(make_parts: MakeParts):
    trainer = make_parts(*METHODS["draft"], "sampler.guidance_scale=3.0").trainer
    (record,) = train(trainer, 1)
    assert record["kl"] == 0.0, "an untrained policy is the reference"
    assert record["loss_reward"] == pytest.approx(-record["reward_mean"] * trainer.method.beta)


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("name", ["refl", "draft"])
def test_under_bf16_the_reward_and_its_gradient_are_float32(
    make_config: Callable[..., Config], name: str
):
    seen: set[Any] = set()

    def spy(images: Tensor, prompts: list[str]) -> Tensor:
        seen.add((images.dtype, torch.is_autocast_enabled("cpu")))
        if images.requires_grad:
            images.register_hook(lambda gradient: seen.add((gradient.dtype, False)))
        return load("warmth")(images, prompts)

    config = make_config(*METHODS[name], "training.precision=bf16")
    parts = prepare(config, config.output_dir, NamedReward("spy", spy))
    for record in train(parts.trainer, 2):
        assert all(math.isfinite(value) for value in record.values())
    assert seen == {(torch.float32, False)}


@pytest.mark.parametrize("name", ["refl", "draft", "alignprop"])
def test_the_recipe_loads_and_says_where_values_come_from(name: str):
    path = RECIPES / f"nano_{name}.yaml"
    config = load_config(path, [], {})
    assert config.method.name == name  # type: ignore[attr-defined]
    settings = [line for line in path.read_text().splitlines() if re.match(r" *\w+: .", line)]
    untraced = [line.split(":")[0].strip() for line in settings if "#" not in line]
    assert untraced == ["output_dir", "name"]
