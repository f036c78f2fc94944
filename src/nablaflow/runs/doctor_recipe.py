"""The memory that a recipe asks for, part by part, before anything of it is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.devices import find_device, is_here, named_device
from nablaflow.errors import UserError
from nablaflow.models import in_four_bits, load_model
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.quantized import check_installed
from nablaflow.models.random_weights import RANDOM, random_by_name
from nablaflow.quiet import quiet_libraries
from nablaflow.rewards import load
from nablaflow.runs.budget import allowance, check_there, device_memory, plan_for
from nablaflow.runs.pretrained import dtype_of, load_pretrained
from nablaflow.runs.remedies import savings, too_small
from nablaflow.runs.setup import flow_beside, suit
from nablaflow.runs.trust import check_recipe, methods_of_recipe
from nablaflow.shapes import META, Shapes
from nablaflow.training.memory_plan import GIB


@quiet_libraries()
def plan_of_recipe(
    recipe: Path,
    settings: Sequence[str],
    *,
    trusted: bool,
    elsewhere: str | None = None,
    memory: float | None = None,
) -> dict[str, Any]:
    """Its memory, GiB, and the batches that it would train with; `MemoryPlan.as_dict` and more.

    The pretrained weights are read where the recipe names some, and not kept; of ``random:NAME``
    there are none.

    Args:
        elsewhere: a device that need not be here, in place of the recipe's, which has to be.
        memory: of the device, GiB; None: what it has here.

    Raises:
        UserError: a mistake in the recipe, or nothing fits in the budget that it sets; or a device
            that is not here and whose memory is not said.
    """
    config = load_config(recipe, settings, {}, methods_of_recipe(recipe, trusted=trusted))
    check_recipe(recipe, config, settings, trusted=trusted)
    device = _device(config, elsewhere)
    there = _memory(config, device, memory)
    method = config.method.settled(calibrated=config.calibrates)  # the most that it may need
    config = config.model_copy(update={"method": method})
    reward = load(config.reward)
    with torch.random.fork_rng(devices=[]):
        model = _on_shapes(config)
        suit(model, config)
        with Shapes():  # embeds a prompt, on shapes too
            config, flow, _ = flow_beside(config, model)
        allowed = allowance(config, there)
        plan = plan_for(config, model, reward, flow, allowed, device=device)
    if plan.peak > allowed and config.training.memory_budget_gb is not None:
        raise too_small(config, model, plan, allowed)
    if config.training.memory_budget_gb is not None:
        check_there(plan, there)
    return {
        "recipe": str(recipe),
        "model": config.model,
        "method": config.method.name,
        "device": device.type,
        "budget_gib": round(allowed / GIB, 2),
        "fits": plan.peak <= allowed,
        **plan.as_dict(),
        "would_help": [] if plan.peak <= allowed else savings(config, model, plan),
    }


def _device(config: Config, elsewhere: str | None) -> torch.device:
    """Where training would run."""
    if elsewhere is not None:
        return named_device(elsewhere, "--for")
    try:
        return find_device(config.training.device, "training.device")
    except UserError as error:
        raise UserError(f"{error}, or --for {config.training.device} --memory GB") from None


def _memory(config: Config, device: torch.device, gib: float | None) -> float:
    """Of a device, bytes; without end where a budget is planned for and no device is named."""
    if gib is not None:
        if not 0 < gib < math.inf:
            raise UserError(f"--memory: must be above 0, not {gib:g}")
        return gib * GIB
    if config.training.memory_budget_gb is not None:
        return math.inf
    if not is_here(device):
        raise UserError(
            f"--memory: there is no {device} here that could be asked; say how many GB it has"
        )
    return device_memory(device)


def _on_shapes(config: Config) -> PipelineModel:
    """In 4 bits as shapes too, which takes no time where a model's weights would take minutes."""
    if config.model_quantization is not None:
        check_installed()
    if config.model.startswith(RANDOM):
        pipeline = random_by_name(config.model, dtype_of(config), META)
    else:
        pipeline = load_pretrained(config.model_copy(update={"model_quantization": None}), None)
    if config.model_quantization is not None:
        in_four_bits(pipeline.to(META))
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
    if found["would_help"]:
        shown.add_section()
    for way in found["would_help"]:
        shown.add_row(f"would help: {way}", "")
    return shown
