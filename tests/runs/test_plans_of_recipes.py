"""Every shipped recipe has a plan, and so have the demo's settings, by a fitted value too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import dump_config
from nablaflow.config.parse import parse_config
from nablaflow.models import (
    AdapterSettings,
    SamplerSettings,
    load_model,
    load_pipeline,
    make_log_flow,
    model_source,
)
from nablaflow.models.log_flow import ConvLogFlow
from nablaflow.models.pipelines import PipelineModel
from nablaflow.runs.doctor_recipe import plan_of_recipe
from nablaflow.training import memory_plan

RECIPES = Path(__file__).parents[2] / "recipes"
OURS = ["reward=brightness", "prompts=[a cat]", "training.decoder=full"]


def _stands_for(recipe: Path) -> list[str]:
    """A small model of the same classes, where a recipe's own is on the hub."""
    family = recipe.stem.split("_")[0]
    if family == "nano":
        return []
    own = [text for text in OURS if family != "ddpm" or "prompts" not in text]
    small = ["sampler.height=32", "sampler.width=32"] if family == "sd35" else []
    return [f"model=random:{family}-small", *own, *small]


def _cases() -> Iterator[Any]:
    """All recipes; one of the embedded model and one of a large are enough for every day."""
    for recipe in sorted(RECIPES.glob("*.yaml")):
        often = recipe.stem in ("nano_warmth", "sd15_fast")
        marks = [] if often else [pytest.mark.slow]
        yield pytest.param(recipe, id=recipe.stem, marks=marks)


@pytest.mark.parametrize("recipe", _cases())
def test_a_shipped_recipe_has_a_plan(recipe: Path):
    found = plan_of_recipe(recipe, _stands_for(recipe), trusted=True, memory=24)
    assert found["fits"]
    assert found["counts_the_reward"]
    assert found["peak_gib"] == pytest.approx(sum(found["parts"].values()), abs=1e-3)


@pytest.fixture
def log_flows(monkeypatch: pytest.MonkeyPatch) -> list[ConvLogFlow]:
    """Those that plans were made with."""
    made: list[ConvLogFlow] = []

    def noted(model: PipelineModel, seed: int) -> ConvLogFlow:
        made.append(make_log_flow(model, seed))
        return made[-1]

    monkeypatch.setattr(memory_plan, "make_log_flow", noted)
    return made


def test_the_demos_settings_have_a_plan_with_the_log_flow_of_its_run(
    tmp_path: Path, log_flows: list[ConvLogFlow]
):
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(dump_config(parse_config(demo_settings())))
    assert plan_of_recipe(recipe, [], trusted=True)["fits"]
    (planned,) = log_flows
    assert all(value.is_meta for value in planned.parameters())
    sampler, adapter = SamplerSettings(steps=10), AdapterSettings()
    own = load_model(load_pipeline(model_source("nano")), sampler, adapter, torch.device("cpu"))
    shapes = [
        [value.shape for value in one.parameters()] for one in (planned, make_log_flow(own, 0))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_a_value_that_is_fitted_is_planned_at_a_published_size(log_flows: list[ConvLogFlow]):
    """Its denoiser, of 3.4 GB in float32, is counted on shapes and never made."""
    large = ["model=random:sd15", *OURS, "evaluation.bank=64", "evaluation.n=64"]
    small = ["sampler.height=64", "sampler.width=64"]
    found = plan_of_recipe(RECIPES / "nano_warmth.yaml", [*large, *small], trusted=True, memory=24)
    assert found["stages"]["losses and gradients"] > 0
    (planned,) = log_flows
    assert all(value.is_meta for value in planned.parameters())
