"""The scale of each layer of a LoRA by kohya's names: alpha over rank, alpha a tensor of its own.

Scales may differ from layer to layer (as of linear layers and convolutions). diffusers 0.42 passes
them on by names that peft does not know, and so loses them where it loads the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

ALPHA = ".alpha"
FACTORS = ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight"))


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


def has_several_scales(file: Path) -> bool:
    """Whether a stock pipeline that loads a file loses the scales of its layers."""
    return len(set(scales_by_kohya(load_file(file)).values())) > 1


def with_its_scales(file: Path) -> tuple[Any, dict[str, Any]]:
    """What ``load_lora_weights`` takes, and options: the file, or its tensors with their scales."""
    state = load_file(file)
    scales = scales_by_kohya(state)
    if len(set(scales.values())) < 2:
        return file.parent, {"weight_name": file.name}
    scaled = {name: state[name].float() * scale for name, scale in scales.items()}
    return {n: v for n, v in (state | scaled).items() if not n.endswith(ALPHA)}, {}
