"""How large a flow network or a log flow may be beside its denoiser: by the work of one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import nn

from nablaflow.models import log_flow
from nablaflow.models.condition import Condition
from nablaflow.models.contract import DiffusionModel
from nablaflow.models.flops import counted
from nablaflow.models.flow_score import UNetFlowScore
from nablaflow.models.log_flow import ConvLogFlow, LogFlow
from nablaflow.models.settings import FlowSettings
from nablaflow.quiet import quiet_libraries

SHARE = 1 / 4
"""Of the denoiser's forward FLOPs: the most that a flow network takes by itself."""

WIDTHS = (64, 48, 32, 24, 16, 8)
MULTIPLES = (1, 2, 4, 4)
"""Channels of the published network (arXiv 2412.07775) are 64 times these."""

Tokens = tuple[int, ...]


@quiet_libraries()
def make_flow_score(model: DiffusionModel, settings: FlowSettings) -> tuple[UNetFlowScore, str]:
    """The flow network beside a model, and a line that says how large it is.

    ``channels: auto`` takes the first of the candidates, the published one and smaller ones, whose
    forward pass at the model's states has at most `SHARE` of the denoiser's FLOPs; where none has,
    the smallest. ``settings`` of the result has the channels.

    Raises:
        UserError: the channels have too many levels for the model's states.
    """
    denoiser = denoiser_flops(model)
    if settings.channels == "auto":
        settings = settings.model_copy(update={"channels": _fitting(model, settings, denoiser)})
    width = _tokens(model)[-1]
    flow = UNetFlowScore(settings, model.state_shape[0], _side(model.state_shape), width)
    assert flow.settings.channels != "auto"
    channels = ", ".join(map(str, flow.settings.channels))
    size = _size(flow, flow_flops(model, settings) / denoiser)
    return flow.to(model.device), f"flow network: channels {channels}; {size}"


@quiet_libraries()
def make_log_flow(model: DiffusionModel, seed: int) -> ConvLogFlow:
    """The log flow beside a model, sized likewise; its weights are drawn by ``seed`` alone."""
    most = SHARE * denoiser_flops(model)
    fitting = (width for width in log_flow.WIDTHS if _log_flow_flops(model, width) <= most)
    channels = next(fitting, log_flow.WIDTHS[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # layers draw their weights from the global state
        network = ConvLogFlow(
            model.state_shape[0], min(model.state_shape[1:]), _tokens(model)[-1], channels
        )
    return network.to(model.device)


@torch.no_grad()
def log_flow_size(model: DiffusionModel, network: LogFlow) -> str:
    """A line that says how large it is."""
    x, timestep = torch.zeros(1, *model.state_shape, device=model.device), torch.zeros(1)
    with counted() as counter:
        network(x, timestep.to(model.device), model.condition([""]))
    return f"log flow: {_size(network, counter.total / denoiser_flops(model))}"


def _size(network: nn.Module, share: float) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{parameters / 1e6:.3g} M parameters, {share:.0%} of the denoiser's forward FLOPs"


def _fitting(model: DiffusionModel, settings: FlowSettings, denoiser: int) -> list[int]:
    def fits(channels: list[int]) -> bool:
        own = settings.model_copy(update={"channels": channels})
        return flow_flops(model, own) <= SHARE * denoiser

    narrowest: list[int] = []
    for widths in _candidates(_side(model.state_shape)):
        narrowest = widths[-1]
        if fits(narrowest):  # else nor does any wider one
            return next(channels for channels in widths if fits(channels))
    return narrowest


def _candidates(side: int) -> Iterator[list[list[int]]]:
    """As many levels as the states can be halved for; then fewer. Each as wide as it goes first."""
    for levels in range(len(MULTIPLES), 0, -1):
        if side % 2 ** (levels - 1) == 0:
            yield [[width * multiple for multiple in MULTIPLES[:levels]] for width in WIDTHS]


@torch.no_grad()
def denoiser_flops(model: DiffusionModel) -> int:
    """FLOPs of one pass of the reference at one state: half of a guided one."""
    x = torch.zeros(1, *model.state_shape, device=model.device)
    timestep = model.process.timestep[-1:].to(model.device)
    condition = model.condition([""])
    with model.reference(), counted() as counter:
        model.forward(x, timestep, condition)
    return counter.total


def flow_flops(model: DiffusionModel, settings: FlowSettings) -> int:
    """FLOPs of one pass at one state; counted on shapes alone."""
    shape = tuple(model.state_shape)
    return _flops_of_shapes(settings.model_dump_json(), shape, _tokens(model))


@lru_cache(maxsize=64)  # a run counts its own twice, and a process may begin many runs
@torch.no_grad()
def _flops_of_shapes(settings: str, state: tuple[int, ...], tokens: Tokens) -> int:
    with torch.device("meta"):
        own, side = FlowSettings.model_validate_json(settings), _side(state)
        network = UNetFlowScore(own, state[0], side, tokens[-1])
        x, timestep = torch.zeros(1, *state), torch.zeros(1)
        with counted() as counter:
            network.unet(x, timestep, torch.zeros(*tokens[:-1], tokens[-1] or 1))
    return counter.total


@torch.no_grad()
def _log_flow_flops(model: DiffusionModel, channels: int) -> int:
    """FLOPs of one pass at one state; counted on shapes alone."""
    state, tokens = model.state_shape, _tokens(model)
    with torch.device("meta"):
        network = ConvLogFlow(state[0], min(state[1:]), tokens[-1], channels)
        x, timestep, hidden = torch.zeros(1, *state), torch.zeros(1), torch.zeros(tokens)
        with counted() as counter:
            network(x, timestep, Condition(hidden=hidden))
    return counter.total


def _tokens(model: DiffusionModel) -> Tokens:
    """Shape of a prompt's embeddings; of width 0 where there are none."""
    hidden = model.condition([""]).hidden
    return (1, 1, 0) if hidden is None else tuple(hidden.shape)


def _side(state: tuple[int, ...]) -> int:
    """What divides both sides of a state divides their greatest common divisor."""
    return math.gcd(*state[1:])
