"""A policy that begins at the user's own LoRA, while the reference is still the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nablaflow.errors import UserError
from nablaflow.models.adapters import ADAPTER, LoraAdapter
from nablaflow.models.lora_file import GivenLora, LoraFactors, find_lora, read_lora
from nablaflow.models.lora_places import Denoiser
from nablaflow.models.lora_targets import exact_targets, targeted
from nablaflow.models.settings import AdapterSettings

SETTING = "adapter.start"


def read_start(pipeline: Any, denoiser: Denoiser, settings: AdapterSettings) -> GivenLora | None:
    """The LoRA that an adapter is to begin from; None where it begins at the reference.

    Raises:
        UserError: there is none, it is for another base, or of another kind or rank than the
            adapter.
    """
    if settings.start is None:
        return None
    file = find_lora(settings.start, SETTING)
    given = read_lora(pipeline, denoiser, file, SETTING)
    _check_kind(given, settings, file)
    return given


def _check_kind(given: GivenLora, settings: AdapterSettings, file: Path) -> None:
    ranks = sorted({len(layer.down) for layer in given.layers.values()})
    if ranks != [settings.rank]:
        remedy = f"set adapter.rank={ranks[0]}" if len(ranks) == 1 else "use one of a single rank"
        named = ", ".join(map(str, ranks))
        raise UserError(
            f"{SETTING}: {file} has rank {named}, and adapter.rank is {settings.rank}; {remedy}"
        )
    dora = {layer.magnitude is not None for layer in given.layers.values()}
    if dora != {settings.dora}:
        kind, wanted = ("a DoRA", "true") if True in dora else ("no DoRA", "false")
        raise UserError(f"{SETTING}: {file} is {kind}; set adapter.dora={wanted}")
    if given.rslora and not settings.rslora:
        raise UserError(f"{SETTING}: {file} is scaled as rsLoRA; set adapter.rslora=true")


def targets_of(given: GivenLora, network: nn.Module, asked: str | list[str]) -> list[str]:
    """Names of the layers to adapt: those of the LoRA, unless others are asked for.

    Raises:
        UserError: the names that are asked for leave some of its layers out.
    """
    if not isinstance(asked, list):
        return _exact(given, network)
    for path in given.layers:
        if not any(f".{path}".endswith(f".{name}") for name in asked):
            raise UserError(
                f"adapter.targets: {SETTING} has an update of {path}, which is none of them; add "
                "it, or leave targets out"
            )
    return asked


def _exact(given: GivenLora, network: nn.Module) -> list[str]:
    names = exact_targets(network, given.layers)
    more = targeted(network, names) - set(given.layers)
    if more:
        raise UserError(
            f"{SETTING}: its layers go by the ends of their names, by which {min(more)} is one of "
            "them too, and has no update there; give adapter.targets to train both"
        )
    return names


@torch.no_grad()
def begin_at(adapter: LoraAdapter, given: GivenLora) -> None:
    """Make the adapter's updates those of the LoRA; a layer without one begins at the reference."""
    for path, factors in given.layers.items():
        _put(adapter.network.get_submodule(path), factors, adapter.factor)


def _put(layer: Any, factors: LoraFactors, factor: float) -> None:
    layer.lora_A[ADAPTER].weight.copy_(factors.down)
    layer.lora_B[ADAPTER].weight.copy_(factors.up * (factors.scale / factor))
    if factors.magnitude is not None:
        layer.lora_magnitude_vector[ADAPTER].weight.copy_(factors.magnitude)
