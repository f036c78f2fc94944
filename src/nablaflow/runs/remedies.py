"""What to say where a run does not fit in memory: what would lower its peak, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from nablaflow.config.recipe import Config
from nablaflow.config.settings import TrainingSettings
from nablaflow.errors import UserError
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.quantized import saved_by_quantizing
from nablaflow.runs.plan import (
    ESTIMATES,
    FIT,
    KEPT,
    LOSSES,
    REHEARSAL,
    TRAINED,
    WEIGHTS,
    MemoryPlan,
)
from nablaflow.training.memory_plan import GIB

SHARE = 0.9
"""Of a device's memory, or of a budget: what is planned. The rest is for what no plan counts."""


Saving = tuple[str, str, int]
"""A setting, how much of the bytes it saves in words, with {} for them, and the bytes."""


def too_small(config: Config, model: PipelineModel, least: MemoryPlan, allowed: float) -> UserError:
    """What to say where not even single rows fit.

    Args:
        least: the plan, which then is of single rows, but for the batches that are given.
        allowed: of it, bytes.
    """
    peak, budget = least.peak / GIB, config.training.memory_budget_gb
    given = [name for name in least.batches if (getattr(config.training, name) or 1) > 1]
    room = f"{allowed / GIB:.2f} GB, nine tenths of what there is"
    ways = ["use a device with more"]
    if budget is not None:
        room = f"{allowed / GIB:.2f} GB, nine tenths of the budget"
        ways = [f"set training.memory_budget_gb={peak / SHARE * 1.005 + 0.005:.2f} or more"]
    if given:
        asked = ", ".join(f"training.{name}={least.batches[name]}" for name in given)
        return UserError(
            f"training.memory_budget_gb: {asked} and what is chosen beside take {peak:.2f} GB, and "
            f"there are {room}; {ways[0]}, or leave training.{given[0]} to the plan"
        )
    others = savings(config, model, least)
    ways += [", ".join(others)] if others else []
    return UserError(
        f"training.memory_budget_gb: nothing fits in {room}; the least that would is {peak:.2f} "
        f"GB, with batches of 1; {', or '.join(ways)}"
    )


def savings(config: Config, model: PipelineModel, plan: MemoryPlan) -> list[str]:
    """What lowers the peak, with what is known of how much; nothing that saves nothing."""
    known = (
        _of_gradients(config, model, plan),
        _of_fit(plan),
        _of_encoders(model, plan),
        _of_all(config, model, plan),
    )
    told = [
        f"{setting} ({words.format(f'{held / GIB:.2f} GB')})"
        for setting, words, held in chain.from_iterable(known)
        if held >= 0.005 * GIB
    ]
    if not _by_encoders(plan):
        height, width = model.image_size
        told.append(f"smaller images than {height} x {width} (sampler.height, sampler.width)")
    return told


def _of_gradients(config: Config, model: PipelineModel, plan: MemoryPlan) -> Iterator[Saving]:
    """Of what the networks keep for backward, where the peak is in that."""
    training, saved = config.training, plan.saved
    decoded = plan.largest == (ESTIMATES if ESTIMATES in plan.stages else LOSSES)
    decoded = decoded and config.method.needs_reward_gradient
    if plan.largest in (LOSSES, ESTIMATES) and not training.gradient_checkpointing:
        held = saved["policy"] + saved["reference"] + decoded * saved["decoder"]
        yield "training.gradient_checkpointing=true", "a part of {}", held
    if decoded and training.decoder == "full" and model.has_small_decoder:
        yield "training.decoder=tiny", "most of {} or more", saved["decoder"]
    if decoded and training.decoder == "full" and _may_be_halved(training, model):
        yield "training.decoder_precision=bf16", "half of {} or more", saved["decoder"]


def _may_be_halved(training: TrainingSettings, model: PipelineModel) -> bool:
    return training.decoder_precision == "float32" and model.has_decoder


def _of_fit(plan: MemoryPlan) -> Iterator[Saving]:
    """Of a value that is fitted, where the peak is in that."""
    if plan.largest == FIT:
        below = max(value for name, value in plan.stages.items() if name != FIT)
        yield "method.value=forward-looking", "{}", plan.stages[FIT] - below


def _of_encoders(model: PipelineModel, plan: MemoryPlan) -> Iterator[Saving]:
    """Of text encoders, which are at work in the rehearsal wherever they rest."""
    held, highest = sum(plan.encoders.values()), max(plan.stages.values())
    if plan.device != "cpu" and not plan.rest:
        then = max(highest, plan.stages[REHEARSAL] + held)
        yield "training.offload_encoders=true", "{} of an accelerator", held + highest - then
    if _by_encoders(plan):
        below = max(value for name, value in plan.stages.items() if name != REHEARSAL)
        for name in set(model.may_lack) & set(plan.encoders):
            less = min(plan.encoders[name], highest - below)
            yield f"a folder of the model without its {name}", "up to {}", less


def _of_all(config: Config, model: PipelineModel, plan: MemoryPlan) -> Iterator[Saving]:
    """Of what is there all the time."""
    lora, exact = config.adapter.kind == "lora", config.method.needs_path_ratio
    if lora and not exact and config.training.precision == "float32":
        yield "training.precision=bf16", "up to {}", plan.parts[WEIGHTS] // 2
    if lora and not config.adapter.dora and config.model_quantization is None:
        yield "model_quantization=nf4", "{}", saved_by_quantizing(model.network)
    if lora and config.adapter.rank > 1:
        yield "a lower adapter.rank", "a part of {}", plan.parts[TRAINED]
    if config.training.prompts_per_update > 1:
        yield "fewer training.prompts_per_update", "a part of {}", plan.parts[KEPT]


def _by_encoders(plan: MemoryPlan) -> bool:
    """Whether the peak is where text encoders that rest elsewhere are at work."""
    return plan.rest and plan.largest == REHEARSAL
