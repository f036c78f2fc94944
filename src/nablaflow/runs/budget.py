"""A run's batches from the memory that it may take; found before any work, and written down.

What is chosen stands in the run's config.yaml: a resumed run sums in the same order, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models import FlowScore
from nablaflow.models.four_bits import sizes_of
from nablaflow.models.pipelines import PipelineModel
from nablaflow.rewards import NamedReward
from nablaflow.runs.plan import (
    DECODE,
    ESTIMATES,
    FIT,
    KEPT,
    LOSSES,
    REHEARSAL,
    ROLLOUT,
    TRAINED,
    WEIGHTS,
    MemoryPlan,
)
from nablaflow.runs.remedies import SHARE, too_small
from nablaflow.shapes import META, Shapes, weights_come_back
from nablaflow.training.memory_plan import GIB, Line, Needs, needs_of

MOST = 64
"""Transitions at once: more make no update of the embedded model faster (docs/benchmarks.md)."""
PLANNED = 50_000_000
"""Parameters of a denoiser from which memory is planned where no budget is given."""
LARGE_IMAGE = 256**2
HEAP = 1.4
"""What glibc's heap and a convolution's scratch take for each byte of tensors (docs/benchmarks.md).
An accelerator's own allocator is counted as exact, which has not been measured."""
CONTEXT = GIB // 2
"""Of an accelerator: the driver's and the kernels' own, of the usual size, not measured."""


@dataclass(frozen=True)
class _Counts:
    """Of one process: trajectories of a rollout, transitions of an optimizer step."""

    trajectories: int
    transitions: int

    @staticmethod
    def of(config: Config, processes: int) -> _Counts:
        training = config.training
        n = max(1, training.prompts_per_update * training.images_per_prompt // processes)
        return _Counts(n, max(1, n * config.transitions_each // training.steps_per_rollout))


def with_batches(
    config: Config,
    model: PipelineModel,
    reward: NamedReward,
    flow: FlowScore | None,
    processes: int = 1,
    *,
    sharded: bool = False,
) -> tuple[Config, list[str]]:
    """With the batches that it leaves to the run, and a line about them where they were planned.

    Args:
        sharded: whether the processes divide what trains among them.

    Raises:
        UserError: not even single rows fit in the budget; it says the least that would.
    """
    training, counts = config.training, _Counts.of(config, processes)
    size = sum(sizes_of(model.network).values())
    if training.memory_budget_gb is None and size < PLANNED:
        if training.micro_batch is None and counts.transitions > MOST:
            config = _with_training(config, micro_batch=MOST)
        return config, []
    there = device_memory(model.device)
    allowed = allowance(config, there)
    plan = plan_for(config, model, reward, flow, allowed, processes, sharded=sharded)
    if plan.peak > allowed:
        raise too_small(config, model, plan, allowed)
    check_there(plan, there)
    line = f"memory: {plan.peak / GIB:.2f} of {allowed / GIB:.2f} GB planned; " + ", ".join(
        f"{name} {value}" for name, value in plan.batches.items() if value is not None
    )
    return _with_training(config, **plan.batches), [line]


def plan_for(
    config: Config,
    model: PipelineModel,
    reward: NamedReward,
    flow: FlowScore | None,
    allowed: float,
    processes: int = 1,
    device: torch.device | None = None,
    *,
    sharded: bool = False,
) -> MemoryPlan:
    """The plan with the largest batches in ``allowed`` bytes; of 1 where nothing fits.

    Args:
        device: that it is for; None: the model's.
        sharded: whether the processes divide what trains among them.
    """
    device = device or model.device
    counts, decode = _Counts.of(config, processes), config.training.decode_batch
    if decode is None and model.image_size[0] * model.image_size[1] >= LARGE_IMAGE:
        decode = 1
    with weights_come_back():
        of_reward = reward_weights(reward, model.image_size)
        shares = processes if sharded else 1
        needs = needs_of(config, model, reward, flow, decode, device, shares)
    here = model.device.type != "meta"
    always = _always(needs, counts, device, needs.weights if here else 0)
    if not (here and device.type == "cpu"):  # a run's own process has them, and is looked at
        always["the reward's weights"] = of_reward
    factor = HEAP if device.type == "cpu" else 1.0
    room = (allowed - sum(always.values())) / factor
    batches, stages = _fitting(config, counts, needs, decode, room)
    order = (REHEARSAL, FIT, ROLLOUT, DECODE, LOSSES, ESTIMATES)
    stages = {name: round(factor * stages[name]) for name in order if name in stages}
    largest = max(stages, key=lambda name: stages[name])
    return MemoryPlan(
        parts={**always, f"largest stage: {largest}": stages[largest]},
        stages=stages,
        saved=needs.saved,
        encoders=needs.encoders,
        rest=needs.rest,
        batches=batches,
        device=device.type,
        rewarded=needs.rewarded,
    )


def _fitting(
    config: Config, counts: _Counts, needs: Needs, decode: int | None, room: float
) -> tuple[dict[str, int | None], dict[str, int]]:
    """The largest batches in ``room``, or those that are given; and the stages' bytes with them.

    Args:
        decode: images decoded at once, where that is settled.
        room: bytes of tensors.
    """
    training, n = config.training, counts.trajectories

    def chosen(given: int | None, line: Line, most: int, within: float = room) -> int:
        return min(most, given) if given else max(1, min(most, line.rows_in(within)))

    micro = chosen(training.micro_batch, needs.loss, min(MOST, counts.transitions))
    stages = {REHEARSAL: needs.rehearsal, LOSSES: needs.loss.at(micro)}
    if needs.fit is not None:
        stages[FIT] = needs.fit
    estimate = None
    if needs.estimate is not None:
        estimate = chosen(training.estimate_batch, needs.estimate, n)
        stages[ESTIMATES] = needs.estimate.at(estimate)
    # What makes no gradient takes no more than what does: larger, it would be no faster.
    within = min(room, max(stages.values()))
    rollout = chosen(training.rollout_batch, needs.rollout, n, within)
    decode = chosen(None, needs.decode, n, within) if decode is None else min(n, decode)
    stages |= {ROLLOUT: needs.rollout.at(rollout), DECODE: needs.decode.at(decode)}
    batches = {
        "micro_batch": micro,
        "rollout_batch": rollout,
        "estimate_batch": estimate,
        "decode_batch": decode,
    }
    return batches, stages


def _always(needs: Needs, counts: _Counts, device: torch.device, here: int) -> dict[str, int]:
    """What is there all the time.

    Args:
        here: bytes of the weights that this process holds already.
    """
    process = CONTEXT
    if device.type == "cpu":  # libraries, and what was loaded for other ends
        process = max(0, psutil.Process().memory_info().rss - here)
    return {
        "the process": process,
        WEIGHTS: needs.weights,
        TRAINED: needs.trained,
        KEPT: needs.kept * counts.trajectories,
    }


def reward_weights(reward: NamedReward, size: tuple[int, int]) -> int:
    """Bytes that a reward keeps where the images are, once it has scored one; 0 of what it hides.

    A learned scorer reads its network at its first call on a device, so this is to be asked before
    anything else is done with it on shapes. One that is elsewhere keeps nothing here.
    """
    with Shapes() as shapes:
        try:
            reward(torch.zeros(1, 3, *size, device=META), ["a"])
        except Exception:  # whatever a user's function does with what has no data; the plan says so
            return 0
        return shapes.now


def check_there(plan: MemoryPlan, memory: float) -> None:
    """Refuse a budget that a machine does not have, where the plan makes use of it.

    Args:
        memory: of the device, bytes.
    """
    if plan.peak > memory:
        raise UserError(
            f"training.memory_budget_gb: {plan.peak / GIB:.2f} GB are planned, and there are "
            f"{memory / GIB:.2f}; set training.memory_budget_gb={memory / GIB:.2f} or less "
            "(nablaflow doctor RECIPE --for cuda --memory 24 plans for a card of 24 GB)"
        )


def allowance(config: Config, memory: float) -> float:
    """Bytes that are planned: nine tenths of the budget, or of what a device has.

    Args:
        memory: of the device, bytes.
    """
    budget = config.training.memory_budget_gb
    return SHARE * (memory if budget is None else budget * GIB)


def device_memory(device: torch.device) -> int:
    """All of it, bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _with_training(config: Config, **values: Any) -> Config:
    training = config.training.model_copy(update=values)
    return config.model_copy(update={"training": training})
