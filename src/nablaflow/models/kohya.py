"""A LoRA by the names of kohya's scripts, which ComfyUI, A1111 and their kin read.

A layer is ``lora_unet_`` and its path with underscores. It has the tensors ``lora_down.weight``,
``lora_up.weight`` and ``alpha``, whose update is (alpha / rank) up down. Of a UNet the path is that
of diffusers, which those readers know. Of a transformer it is that of the published checkpoint,
where query, key and value are one layer: see `Layout`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nablaflow.errors import UserError

PREFIX = "lora_unet_"

Layout = Mapping[str, tuple[str, ...]]
"""A layer of the published checkpoint to diffusers' layers that it holds, in the order of its rows.

``{}`` stands for the number of a block.
"""


def by_kohyas_names(
    layers: Mapping[str, Tensor], network: nn.Module, layout: Layout | None
) -> dict[str, Tensor]:
    """The tensors of a LoRA file.

    Args:
        layers: by peft's names, alpha being the rank: see `nablaflow.models.export.lora_layers`.
        network: that the LoRA is on, for the rows of layers without one.
        layout: None: the paths are diffusers' own.

    Raises:
        UserError: a layer has no place in the layout.
    """
    paths = [name.removesuffix(_A) for name in layers if name.endswith(_A)]
    factors = {path: (layers[path + _A], layers[path + _B]) for path in paths}
    if layout is not None:
        factors = _published(factors, network, layout)
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in factors.items():
        name = PREFIX + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = down.contiguous()
        tensors[f"{name}.lora_up.weight"] = up.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return tensors


_A, _B = ".lora_A.weight", ".lora_B.weight"
Factors = tuple[Tensor, Tensor]  # (rank, in, …) and (out, rank, …)


def _published(
    factors: Mapping[str, Factors], network: nn.Module, layout: Layout
) -> dict[str, Factors]:
    """The factors of the checkpoint's layers."""
    targets = {path: _place(path, layout) for path in factors}
    found: dict[str, Factors] = {}
    for path, (target, parts) in targets.items():
        if target not in found:
            alone = len(parts) == 1
            found[target] = factors[path] if alone else _side_by_side(parts, factors, network)
    return found


def _place(path: str, layout: Layout) -> tuple[str, tuple[str, ...]]:
    """The checkpoint's layer that holds one of diffusers', and all that it holds."""
    place = placed(path, layout)
    if place is None:
        raise UserError(
            f"--format: the published checkpoint has no layer for {path}, so kohya's names have "
            "none either; use diffusers or merged"
        )
    return place


def placed(path: str, layout: Layout) -> tuple[str, tuple[str, ...]] | None:
    """The checkpoint's layer that holds one of diffusers', and all that it holds, if there is."""
    for target, parts in layout.items():
        for part in parts:
            match = re.fullmatch(re.escape(part).replace(r"\{\}", r"(\d+)"), path)
            if match is not None:
                numbers = match.groups()
                return target.format(*numbers), tuple(p.format(*numbers) for p in parts)
    return None


def _side_by_side(
    parts: tuple[str, ...], factors: Mapping[str, Factors], network: nn.Module
) -> Factors:
    """Updates of parts as one update of the whole, exactly; its rank is the sum of theirs."""
    present = [factors[part] for part in parts if part in factors]
    down = torch.cat([factor for factor, _ in present])
    up = down.new_zeros(sum(_rows(network, part) for part in parts), len(down))
    row = column = 0
    for part in parts:
        rows = _rows(network, part)
        if part in factors:
            own = factors[part][1]
            up[row : row + rows, column : column + own.shape[1]] = own
            column += own.shape[1]
        row += rows
    return down, up


def _rows(network: nn.Module, path: str) -> int:
    layer: Any = network.get_submodule(path)
    return layer.out_features
