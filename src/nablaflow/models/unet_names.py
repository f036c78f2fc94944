"""What the published checkpoints of Stable Diffusion 1, 2 and XL call the layers of a UNet."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ALONE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
PATH = re.compile(
    r"(?P<side>(down|up)_blocks\.(?P<level>\d+)|mid_block)"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<number>\d+)\.(?P<inside>.+)"
)


def published_names(network: nn.Module) -> dict[str, str]:
    """Layer by the checkpoint's name to the same by diffusers'; none of another kind of network."""
    if not isinstance(network, UNet2DConditionModel):
        return {}
    config: Any = network.config
    if not isinstance(config.layers_per_block, int):
        return {}  # no published one differs from block to block
    paths = {name for name, _ in network.named_modules()}
    found = {path: _published(path, config.layers_per_block, paths) for path in paths}
    return {theirs: own for own, theirs in found.items() if theirs is not None}


def _published(path: str, layers: int, paths: Collection[str]) -> str | None:
    match = PATH.fullmatch(path)
    if match is None:
        return ALONE.get(path)
    kind, number, inside = match["kind"], int(match["number"]), match["inside"]
    if kind == "resnets":
        inside = RESIDUAL.get(inside, inside)
    if match["side"] == "mid_block":
        place = 1 if kind == "attentions" else 2 * number
        return f"middle_block.{place}.{inside}"
    level = int(match["level"]) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{level + layers + 1}.0.op"
    attends = f"{match['side']}.attentions.0" in paths
    if kind == "upsamplers":
        return f"output_blocks.{level + layers}.{1 + attends}.{inside}"
    down = match["side"].startswith("down")
    place = f"input_blocks.{level + number + 1}" if down else f"output_blocks.{level + number}"
    return f"{place}.{int(kind == 'attentions')}.{inside}"
