"""A LoRA by the names of kohya's scripts, which ComfyUI, A1111 and their kin read.

A layer is ``lora_unet_`` and its path with underscores. It has the tensors ``lora_down.weight``,
``lora_up.weight`` and ``alpha``, whose update is (alpha / rank) up down, or ``diff``, the update
itself, where it is no product of two factors. Of a UNet the path is that
of diffusers, which those readers know. Of a transformer it is that of the published checkpoint,
where query, key and value are one layer: see `Layout`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

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
        factors = _published(factors, network, layout, _side_by_side)
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in factors.items():
        name = _name(path)
        tensors[f"{name}.lora_down.weight"] = down.contiguous()
        tensors[f"{name}.lora_up.weight"] = up.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return tensors


def whole_by_kohyas_names(
    updates: Mapping[str, Tensor], network: nn.Module, layout: Layout | None
) -> dict[str, Tensor]:
    """The tensors of a file with the updates of whole weights.

    Args:
        updates: by diffusers' path of a layer, each in the shape of its weight.
        network: that they are of, for the rows of layers without one.
        layout: None: the paths are diffusers' own.

    Raises:
        UserError: a layer has no place in the layout.
    """
    if layout is not None:
        updates = _published(updates, network, layout, _stacked)
    return {f"{_name(path)}.diff": update.contiguous() for path, update in updates.items()}


def _name(path: str) -> str:
    return PREFIX + path.replace(".", "_")


_A, _B = ".lora_A.weight", ".lora_B.weight"
Factors = tuple[Tensor, Tensor]  # (rank, in, …) and (out, rank, …)


Given = TypeVar("Given")
Join = Callable[[tuple[str, ...], Mapping[str, Given], nn.Module], Given]


def _published(
    given: Mapping[str, Given], network: nn.Module, layout: Layout, join: Join[Given]
) -> dict[str, Given]:
    """What the layers have as the checkpoint's layers have it.

    Args:
        join: makes one of what a layer's parts have, in the order of its rows.
    """
    targets = {path: _place(path, layout) for path in given}
    found: dict[str, Given] = {}
    for path, (target, parts) in targets.items():
        if target not in found:
            found[target] = given[path] if len(parts) == 1 else join(parts, given, network)
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


def _stacked(parts: tuple[str, ...], updates: Mapping[str, Tensor], network: nn.Module) -> Tensor:
    """Updates of parts as one of the whole; those without one stay as they are."""
    some = next(updates[part] for part in parts if part in updates)
    rows = {part: (_rows(network, part), *some.shape[1:]) for part in parts}
    return torch.cat([updates.get(part, some.new_zeros(rows[part])) for part in parts])


def _rows(network: nn.Module, path: str) -> int:
    layer: Any = network.get_submodule(path)
    return layer.out_features
