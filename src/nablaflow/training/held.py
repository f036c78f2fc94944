"""Bytes of what a run holds, counted: its networks, and what trains of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.models import FlowScore
from nablaflow.models.adapters import trainable_parameters
from nablaflow.models.pipelines import PipelineModel
from nablaflow.training.update import Update

FLOAT = 4


def weights_held(model: PipelineModel, flow: FlowScore | None, resting: tuple[str, ...]) -> int:
    """All networks, but for what trains and for encoders that rest elsewhere."""
    networks = [part for part in vars(model.adapter).values() if _is_network(part)]
    networks += [part for part in vars(model).values() if _is_network(part)]
    networks += [part for name, part in model.pipeline.components.items() if name not in resting]
    own = {id(value): value for part in networks if _is_network(part) for value in _all(part)}
    total = sum(_bytes(value) for value in own.values())
    of_flow = 0 if flow is None else 2 * sum(map(_bytes, _all(flow)))
    return total - sum(map(_bytes, trainable_parameters(model.network))) + of_flow


def resting_encoders(config: Config, model: PipelineModel, device: torch.device) -> tuple[str, ...]:
    """Text encoders that are on the CPU but while they have something to do."""
    asked = config.training.offload_encoders
    offloads = model.heavy_encoders if asked is None else asked
    return model.encoders if offloads and device.type != "cpu" else ()


def trained_held(
    config: Config, model: PipelineModel, flow: FlowScore | None, shares: int, *, old_policy: bool
) -> int:
    """What trains, the optimizer's moments and averages.

    Args:
        shares: processes that divide what trains among them (FSDP2).
        old_policy: whether the method has one.
    """
    policy = sum(value.numel() for value in trainable_parameters(model.network))
    of_flow = 0 if flow is None else sum(value.numel() for value in _all(flow))
    whole, parts = 1, int(config.adapter.ema_decay is not None)
    if shares > 1:
        parts += 1  # the weights between steps, beside those that are gathered for the passes
    if old_policy:
        whole += 2  # itself, and the policy's own while the old one has its place
    moments = _moments(config)
    divided = (FLOAT * parts + moments) * policy // shares
    return FLOAT * whole * policy + divided + moments * of_flow


def saved_held(
    config: Config, model: PipelineModel, flow: FlowScore | None, core: Update
) -> tuple[int, ...]:
    """Bytes of a checkpoint's files: what trains, its averages, and the rest of an update's state.

    That is the optimizer's moments, and a rollout where later updates train on it.
    """
    old_policy = core.networks.old_policy is not None
    policy = trainable_parameters(model.network)
    networks = [policy] * (1 + int(config.adapter.ema_decay is not None) + int(old_policy))
    of_flow = [] if flow is None else _all(flow)
    trained = sum(value.numel() for value in (*policy, *of_flow))
    files = [*networks, *[of_flow] * (2 if of_flow else 0)]
    state = _moments(config) * trained + _rollout_saved(config, model, core)
    return (*(sum(map(_bytes, values)) for values in files), state)


def _rollout_saved(config: Config, model: PipelineModel, core: Update) -> int:
    """Of x_0, of four tensors of each transition and of the states that are read again."""
    training = config.training
    shared = training.checkpoint_every % config.updates_per_rollout > 0
    if not shared and training.data != "previous-rollout":
        return 0
    states = (model.process.steps + 1) * core.keeps_states
    each = FLOAT * math.prod(model.state_shape) * (1 + 4 * config.transitions_each + states)
    return training.prompts_per_update * training.images_per_prompt * each


def _moments(config: Config) -> int:
    """Of the optimizer's, for one number that trains."""
    return 2 * (1 if config.optimizer.name == "adamw8bit" else FLOAT)


def encoders_held(model: PipelineModel) -> dict[str, int]:
    """Text encoders that there are, by their names."""
    parts = {name: getattr(model.pipeline, name, None) for name in model.encoders}
    return {n: sum(map(_bytes, _all(part))) for n, part in parts.items() if part is not None}


def stocks_own(model: PipelineModel) -> int:
    """Of the stock pipeline that it is compared with: what the two do not share, in float32."""
    shared = (model.denoiser, *model.encoders)
    parts = {n: p for n, p in model.pipeline.components.items() if n not in shared}
    networks = [part for part in parts.values() if _is_network(part)]
    return sum(FLOAT * value.numel() for part in networks for value in _all(part))


def _is_network(part: Any) -> bool:
    return isinstance(part, torch.nn.Module)


def _all(network: torch.nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
