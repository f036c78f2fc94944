"""Whether a configuration fits itself, its model and this machine; found before training."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator

import psutil
import torch

from nablaflow.config.recipe import Config
from nablaflow.config.settings import TrainingSettings
from nablaflow.errors import UserError
from nablaflow.evaluation.plan import EvaluationPlan
from nablaflow.methods import METHODS, Method
from nablaflow.models.four_bits import sizes_of
from nablaflow.models.pipelines import PipelineModel
from nablaflow.rewards import NamedReward, probe, require_gradient
from nablaflow.runs.budget import device_memory
from nablaflow.training.memory_plan import GIB

_FLOAT = 4  # bytes


def check_settings(config: Config, evaluated: list[str], *, fresh: bool) -> None:
    """What can be told without the model.

    Args:
        evaluated: the prompts to measure on.
        fresh: whether nothing was trained by it yet.

    Raises:
        UserError: settings that do not fit each other.
    """
    if fresh:
        refuse_idle(config)
    check_evaluation(config, evaluated)
    check_group(config.method, config)
    check_precision(config.method, config)
    check_decoder(config.method, config.training)
    check_shared_rollouts(config)


def check_model(
    config: Config, model: PipelineModel, reward: NamedReward, prompts: list[str]
) -> None:
    """What can be told of the model and the reward before any of them works for a run.

    Raises:
        UserError: the settings do not fit them.
    """
    method, training = config.method, config.training
    check_fits(config, model)
    check_prompts(config, model)
    if training.decoder == "tiny":
        model.check_small_decoder()
    model.check_decoder_in(training.decoder_precision)
    on_policy = training.data == "on-policy" and training.steps_per_rollout == 1
    method.check(model.process, flow=config.flow is not None, on_policy=on_policy)
    check_reward(method, reward, model, prompts)


def refuse_idle(config: Config) -> None:
    """Refuse what was given and could do nothing."""
    for line in idle_settings(config):
        raise UserError(line)


def idle_settings(config: Config) -> Iterator[str]:
    """A line about each setting that has another value than the default, and could do nothing."""
    of_method = config.method.idle(flow=config.flow is not None)
    for place, group, idle in (
        ("adapter", config.adapter, config.adapter.idle()),
        ("method", config.method, of_method),
    ):
        for name, remedy in idle:
            default = type(group).model_fields[name].default
            if getattr(group, name) != default:
                left = json.dumps(default).strip('"')
                yield f"{place}.{name}: {remedy}, or leave it at {left}"


def check_shares(training: TrainingSettings, processes: int) -> None:
    """Refuse trajectories that do not divide among the processes and their optimizer steps."""
    total = training.prompts_per_update * training.images_per_prompt
    if total % processes:
        each = training.images_per_prompt
        prompts = training.prompts_per_update
        above = next(n for n in itertools.count(prompts) if n * each % processes == 0)
        fewer = next(n for n in range(min(processes, total), 0, -1) if total % n == 0)
        raise UserError(
            f"training.prompts_per_update: {prompts} x {each} trajectories do not divide among "
            f"{processes} processes; training.prompts_per_update={above} would, or {fewer} "
            f"process{'es' * (fewer > 1)}"
        )
    if total // processes % training.steps_per_rollout:
        raise UserError(
            f"training.steps_per_rollout: {total // processes} trajectories of a process do not "
            f"divide among {training.steps_per_rollout} optimizer steps; choose a divisor"
        )


def check_shared_rollouts(config: Config) -> None:
    """Refuse states noised afresh to a method that asks for what its own rollout sampled."""
    method, shared = config.method, config.updates_per_rollout
    if shared == 1:
        return
    if config.training.data != "on-policy":
        raise UserError(
            f"training.updates_per_rollout: {shared} updates share the newest rollout; use "
            "training.data=on-policy, or training.updates_per_rollout=1"
        )
    if not method.trains_at_any_state:
        raise UserError(
            f"training.updates_per_rollout: {shared} trains on states noised afresh, and "
            f"{method.name} with these settings reads what its rollout sampled; use 1, or "
            "residual-nabla-db with its defaults"
        )


def check_precision(method: Method, config: Config) -> None:
    """Densities of whole trajectories are sums of many small differences."""
    precision = config.training.precision
    if method.needs_path_ratio and precision != "float32":
        raise UserError(
            f"training.precision: {method.name} weighs by densities of whole trajectories, which "
            f"{precision} rounds by nats; use float32"
        )


def check_decoder(method: Method, training: TrainingSettings) -> None:
    """Refuse a decoder for gradients that a method does not take."""
    if training.decoder != "full" and not method.needs_reward_gradient:
        raise UserError(
            f"training.decoder: {method.name} takes no gradient of the reward; leave it out"
        )


def check_group(method: Method, config: Config) -> None:
    """Refuse one image a prompt, or one in all, for a method that compares them."""
    each, prompts = config.training.images_per_prompt, config.training.prompts_per_update
    if method.credit_group == "batch" and each * prompts == 1:
        raise UserError(
            f"training.images_per_prompt: {method.name} compares the images of an update and needs "
            "2 or more"
        )
    if not method.needs_group or each > 1:
        return
    others = ", ".join(name for name, kind in METHODS.items() if kind.credit_group is None)
    raise UserError(
        f"training.images_per_prompt: {method.name} compares the images of a prompt and needs 2 or "
        f"more; these do not: {others}"
    )


def check_prompts(config: Config, model: PipelineModel) -> None:
    """Refuse to train a text model without texts."""
    if config.prompts is None and model.takes_prompts:
        raise UserError(
            f"prompts: null is for unconditional models, and this is a "
            f"{type(model.pipeline).__name__}; give a list of prompts, or a file"
        )


def check_evaluation(config: Config, prompts: list[str]) -> None:
    """The figures are found at the end of a run, too late to learn that they cannot be."""
    least = 2 * len(prompts)  # for a spread within each prompt
    for name, n in (("n", config.evaluation.n), ("bank", config.evaluation.bank or least)):
        if n < least:
            raise UserError(
                f"evaluation.{name}: {n} images are fewer than 2 for each of the {len(prompts)} "
                f"prompts; use {least} or more"
            )
    if config.training.calibrate and config.evaluation.bank == 0:
        raise UserError(
            "training.calibrate: it asks for the exact tilt's mean reward, which evaluation.bank=0 "
            "leaves out; use evaluation.bank=4096, or leave calibrate out"
        )


def check_metrics(config: Config, prompts: list[str], device: torch.device) -> None:
    """Find out whether the further metrics are any, and have their packages and weights."""
    EvaluationPlan.of_summary(config.evaluation, len(prompts), device)


def check_reward(
    method: Method, reward: NamedReward, model: PipelineModel, prompts: list[str]
) -> None:
    """Find out before training whether the reward is what the method needs."""
    height, width = model.image_size
    found = probe(reward, height=height, width=width, device=model.device, prompts=prompts)
    if method.needs_reward_gradient:
        without = [name for name, kind in METHODS.items() if not kind.needs_reward_gradient]
        require_gradient(reward.name, found, without)


def check_fits(config: Config, model: PipelineModel) -> None:
    """Hold what a run keeps in memory at once, at the very least, against what the machine has.

    Raises:
        UserError: it names the setting, and how many would fit.
    """
    check_decodes(model)
    training, evaluation = config.training, config.evaluation
    state = _FLOAT * math.prod(model.state_shape)
    trajectory = (2 * config.transitions_each + 1) * state
    group = training.images_per_prompt * trajectory
    check_count("training.images_per_prompt", training.images_per_prompt, trajectory)
    check_count("training.prompts_per_update", training.prompts_per_update, group)
    check_count("evaluation.n", evaluation.n, 2 * (state + image_bytes(model)))
    check_count("evaluation.bank", evaluation.bank, state // 2)
    if config.guard is not None and config.guard.n != "auto":
        check_count("guard.n", config.guard.n, state)


def check_decodes(model: PipelineModel) -> None:
    """Refuse images so large that the device has no room to decode a single one.

    Raises:
        UserError: it says what one takes, at the very least, and what there is.
    """
    height, width = model.image_size
    needed, there = _FLOAT * model.decoded_floats, device_memory(model.device)
    if needed > there:
        raise UserError(
            f"sampler.height: to decode one image of {height}x{width} pixels takes more than "
            f"{needed / GIB:.1f} GB, and there are {there / GIB:.1f}; use smaller images "
            "(sampler.height, sampler.width)"
        )


def image_bytes(model: PipelineModel) -> int:
    """Bytes of one image in float32."""
    return 3 * math.prod(model.image_size) * _FLOAT


def check_count(name: str, count: int, each: int) -> None:
    """Refuse a count that memory has no room for.

    Args:
        name: of the setting.
        each: bytes of one.

    Raises:
        UserError: it says how many would fit.
    """
    memory = psutil.virtual_memory().total
    if each > memory:
        raise UserError(
            f"{name}: even one, of {each:,} bytes, is more than this machine's memory; use smaller "
            "images"
        )
    if count * each > memory:
        raise UserError(
            f"{name}: {count:,} of {each:,} bytes each are more than this machine's memory; at "
            f"most {memory // each:,} would fit"
        )


LARGE = 10**8  # parameters of a denoiser with which an update on a processor takes an hour or more


def note_on_speed(model: PipelineModel) -> list[str]:
    """A line where a large model would be trained without a GPU, else none."""
    parameters = sum(sizes_of(model.network).values())
    if model.device.type != "cpu" or parameters < LARGE:
        return []
    return [
        f"training.device: there is no GPU in use, and the model has {parameters / 1e6:.0f} M "
        "parameters: an update may take hours; nablaflow doctor says how long Stable Diffusion's do"
    ]
