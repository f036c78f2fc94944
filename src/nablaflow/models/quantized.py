"""A model whose denoiser is in 4 bits: of the base of a LoRA (QLoRA, arXiv 2305.14314).

The quantized network is the reference. What is fused into a model, and what a hash is of, is the
model as it is read.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nablaflow.errors import UserError, installing
from nablaflow.models.four_bits import BITS, BLOCK, Linear4bit, sizes_of
from nablaflow.models.fused import WithLora
from nablaflow.models.live import LivePipeline

SETTING = "model_quantization"
Quantization = Literal["nf4"]
LEAST = (0, 49)
"""Version of bitsandbytes: older ones end the process on a processor, or on shapes."""


@dataclass(frozen=True)
class Quantized:
    """Where a model comes from whose denoiser is quantized once it is read."""

    model: str | LivePipeline | WithLora


def check_installed() -> None:
    """Refuse to quantize where the library for it is not there, or too old to do so anywhere.

    Raises:
        UserError: so it is.
    """
    try:
        found = importlib.import_module("bitsandbytes").__version__
    except ImportError as error:
        raise _needs(str(error)) from error
    if tuple(map(int, found.split(".")[:2])) < LEAST:
        raise _needs(f"{'.'.join(map(str, LEAST))} or newer, and {found} is here")


def _needs(what: str) -> UserError:
    return UserError(
        f"{SETTING}: nf4 needs bitsandbytes ({what}); {installing('bitsandbytes')}, or leave "
        f"{SETTING} out"
    )


def quantize(network: nn.Module) -> nn.Module:
    """The same network, the linear layers of its blocks in 4 bits.

    Those are most of its weights. What is outside of its blocks, where images, texts and times go
    in and images come out, stays as it is, and so do convolutions, norms, embeddings, and layers
    whose weights fill no whole number of blocks of 64.

    Raises:
        UserError: it has none, or bitsandbytes is not installed.
    """
    check_installed()
    found = dict(_of_blocks(network))
    if not found:
        raise UserError(
            f"{SETTING}: a {type(network).__name__} has no linear layer in its blocks that 4 bits "
            f"are for; leave {SETTING} out"
        )
    for path, layer in found.items():
        _put(network, path, Linear4bit(layer, _at_work(layer)))
    return network


def saved_by_quantizing(network: nn.Module) -> int:
    """Bytes that a network would take less; 0 of one that has no layer for it.

    Args:
        network: with or without a LoRA, whose own weights stay as they are.
    """
    layers = [layer for name, layer in _of_blocks(network) if ".lora_" not in name]
    bits = sum(layer.weight.numel() * (8 * layer.weight.element_size() - BITS) for layer in layers)
    return round(bits / 8)


def dequantize(network: nn.Module) -> nn.Module:
    """The same network, each layer of 4 bits a plain one of the same weights."""
    found = {n: part for n, part in network.named_modules() if isinstance(part, Linear4bit)}
    for path, layer in found.items():
        _put(network, path, layer.plain())
    return network


def _put(network: nn.Module, path: str, layer: nn.Module) -> None:
    place, _, name = path.rpartition(".")
    setattr(network.get_submodule(place), name, layer)


def _at_work(layer: nn.Linear) -> torch.device | None:
    """A GPU where there is one: a processor takes minutes for each billion of weights."""
    able = torch.cuda.is_available() and not layer.weight.is_meta
    return torch.device("cuda") if able else None


def quantized_told(network: nn.Module) -> str:
    """How much of a network is in 4 bits."""
    layers = [part for part in network.modules() if isinstance(part, Linear4bit)]
    count = sum(part.in_features * part.out_features for part in layers)
    total = sum(size for name, size in sizes_of(network).items() if ".lora_" not in name)
    return f"{len(layers)} linear layers, {count / total:.0%} of its parameters, in NF4"


def _of_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers inside the lists of blocks that a network is made of, by their paths."""
    lists = [name for name, part in network.named_modules() if isinstance(part, nn.ModuleList)]
    for name, part in network.named_modules():
        if not isinstance(part, nn.Linear) or type(part) is not nn.Linear:
            continue  # another than torch's own computes in another way
        fits = part.weight.numel() % BLOCK == 0
        if fits and any(name.startswith(f"{place}.") for place in lists):
            yield name, part
