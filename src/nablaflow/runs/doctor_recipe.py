"""The memory that a recipe asks for, part by part, before anything of it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.devices import find_device
from nablaflow.models import load_model
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.random_weights import RANDOM, random_by_name
from nablaflow.quiet import quiet_libraries
from nablaflow.rewards import load
from nablaflow.runs.budget import allowance, plan_for, too_small
from nablaflow.runs.pretrained import dtype_of, load_pretrained
from nablaflow.runs.setup import flow_beside, suit
from nablaflow.runs.trust import check_recipe, methods_of_recipe
from nablaflow.shapes import META, Shapes
from nablaflow.training.memory_plan import GIB


@quiet_libraries()
def plan_of_recipe(recipe: Path, settings: Sequence[str], *, trusted: bool) -> dict[str, Any]:
    """Its memory, GiB, and the batches that it would train with; `MemoryPlan.as_dict` and more.

    The pretrained weights are read where the recipe names some, and not kept; of ``random:NAME``
    there are none.

    Raises:
        UserError: a mistake in the recipe, or nothing fits in the budget that it sets.
    """
    config = load_config(recipe, settings, {}, methods_of_recipe(recipe, trusted=trusted))
    check_recipe(recipe, config, settings, trusted=trusted)
    device = find_device(config.training.device, "training.device")
    reward = load(config.reward)
    with torch.random.fork_rng(devices=[]):
        model = _on_shapes(config)
        suit(model, config)
        with Shapes():  # embeds a prompt, on shapes too
            config, flow, _ = flow_beside(config, model)
        allowed = allowance(config, device)
        plan = plan_for(config, model, reward, flow, allowed, device=device)
    if plan.peak > allowed and config.training.memory_budget_gb is not None:
        raise too_small(config, plan, allowed)
    return {
        "recipe": str(recipe),
        "model": config.model,
        "method": config.method.name,
        "device": device.type,
        "budget_gib": round(allowed / GIB, 2),
        "fits": plan.peak <= allowed,
        **plan.as_dict(),
    }


def _on_shapes(config: Config) -> PipelineModel:
    dtype = dtype_of(config)
    if config.model.startswith(RANDOM):
        pipeline = random_by_name(config.model, dtype, META)
    else:
        pipeline = load_pretrained(config, None)
    return load_model(pipeline, config.sampler, config.adapter, META)


def plan_table(found: dict[str, Any]) -> Table:
    """`plan_of_recipe` for people."""
    shown = Table(
        "memory", "GiB", title=f"{found['recipe']}: {found['method']} of {found['model']}"
    )
    for name, value in found["parts"].items():
        shown.add_row(name, f"{value:.2f}")
    verdict = "fits" if found["fits"] else "does not fit"
    shown.add_section()
    shown.add_row(
        f"peak; {verdict} in {found['budget_gib']:g} on {found['device']}",
        f"{found['peak_gib']:.2f}",
        end_section=True,
    )
    for name, value in found["stages"].items():
        shown.add_row(f"stage: {name}", f"{value:.2f}")
    shown.add_section()
    for name, value in found["saved_per_transition"].items():
        shown.add_row(f"saved for backward by the {name}, a transition", f"{value:.3f}")
    shown.add_section()
    for name, value in found["batches"].items():
        if value is not None:
            shown.add_row(f"training.{name}", str(value))
    if not found["counts_the_reward"]:
        shown.add_row("the reward's own memory", "not counted")
    return shown
