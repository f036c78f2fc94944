"""A model's twin without data: the same code on tensors of the same shapes, and no memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from nablaflow.models.pipelines import PipelineModel
from nablaflow.shapes import META


def without_data(model: PipelineModel) -> PipelineModel:
    """A copy of a model whose networks have shapes alone; the sampler's tables stay as they are.

    Where the pretrained weights are in half precision the adapter's are too: there autocast has
    their layers compute in it, and on shapes alone torch has no autocast.
    """
    memo: dict[int, Any] = {}
    for network in _networks(model):
        memo |= _emptied(network)
    made = copy.deepcopy(model, memo)
    made.device = META
    half = {part.dtype for part in made.network.parameters()} & {torch.bfloat16, torch.float16}
    if half:
        made.network.to(half.pop())
    return made


def network_without_data(network: nn.Module) -> Any:
    """A copy of a network with shapes alone."""
    return copy.deepcopy(network, _emptied(network))


def _networks(model: PipelineModel) -> list[nn.Module]:
    places = [*vars(model).values(), *vars(model.adapter).values()]
    places += model.pipeline.components.values()
    return [part for part in places if isinstance(part, nn.Module)]


def _emptied(network: nn.Module) -> dict[int, Any]:
    """For `copy.deepcopy`: what stands in the place of each tensor of a network."""
    empty: dict[int, Any] = {
        id(value): nn.Parameter(value.detach().to(META), requires_grad=value.requires_grad)
        for value in network.parameters()
    }
    return empty | {id(value): value.detach().to(META) for value in network.buffers()}
