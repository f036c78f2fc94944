"""The scale of each layer of a LoRA by kohya's names: alpha over rank, alpha a tensor of its own.

Scales may differ from layer to layer (as of linear layers and convolutions). diffusers 0.42 passes
them on by names that peft does not know, and so loses them where it loads the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

ALPHA = ".alpha"
FACTORS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)
"""What the names of a layer's two factors end with."""


MIDDLE = ".lora_mid.weight"
"""Of a LyCORIS of a convolution in three: a 1x1 one, the kernel among the ranks, a 1x1 one."""


def without_middles(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same updates in two factors each: the first two convolutions of three are one."""
    found = dict(state)
    for name in [name for name in state if name.endswith(MIDDLE)]:
        down = f"{name.removesuffix(MIDDLE)}{FACTORS[0][0]}"
        kernel, point = found.pop(name).float(), found[down].float().flatten(1)
        found[down] = torch.einsum("rsij,sc->rcij", kernel, point)
    return found


def scales_by_kohya(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Alpha over rank of each layer by the name of its up factor; 1 where it has no alpha."""
    found: dict[str, float] = {}
    for name in state:
        for down, up in FACTORS:
            path = name.removesuffix(up)
            if name.endswith(up) and f"{path}{down}" in state:
                alpha = state.get(f"{path}{ALPHA}")
                found[name] = 1.0 if alpha is None else float(alpha) / len(state[f"{path}{down}"])
    return found


def alone(names: Collection[str]) -> list[str]:
    """The alphas that are not beside a layer's factors, by names that are read here."""
    paths = {name.removesuffix(down) for name in names for down, _ in FACTORS}
    return [n for n in names if n.endswith(ALPHA) and n.removesuffix(ALPHA) not in paths]


def stock_keeps(state: Mapping[str, Tensor]) -> bool:
    """Whether diffusers keeps the scales of a file's layers: one, of one rank, by kohya's names."""
    ends = tuple(down for down, _ in FACTORS)
    ranks = {len(value) for name, value in state.items() if name.endswith(ends)}
    kohyas = any(name.endswith(ends[0]) for name in state)
    read = kohyas or not has_kohyas_form(state)
    return read and len(ranks) == 1 and len(set(scales_by_kohya(state).values())) == 1


def without_scales(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each layer's scale in its up factor, and no alphas."""
    scales = scales_by_kohya(state)
    scaled = {n: state[n].float() * scale for n, scale in scales.items() if scale != 1.0}
    return {n: v for n, v in {**state, **scaled}.items() if not n.endswith(ALPHA)}


def has_kohyas_form(names: Collection[str]) -> bool:
    """Whether the scale of a layer is alpha over rank, or 1 without: by what the names end with."""
    down = FACTORS[0][0]
    return any(name.endswith((ALPHA, down)) for name in names)
