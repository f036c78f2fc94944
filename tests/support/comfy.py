"""An own reading of ComfyUI's published rules for LoRA files (comfy/lora.py, comfy/utils.py).

A model is the weights of a checkpoint by the checkpoint's own names. Each of them, and of a UNet
also each by diffusers' name, has one key of a LoRA; a key without a weight is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

ATTENTION = ("proj_in", "proj_out", "norm")
BLOCK = (
    *(f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)
RESIDUAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def of_unet(config: Mapping[str, Any]) -> dict[str, str]:
    """Layer by diffusers' name to the same by the checkpoint's, of a text-to-image UNet."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    depth = config["transformer_layers_per_block"]
    depths = [depth] * levels if isinstance(depth, int) else list(depth)
    found = dict(OUTSIDE)
    for level, kind in enumerate(config["down_block_types"]):
        first = 1 + (layers + 1) * level
        for i in range(layers):
            found |= _residual(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{first + i}.0")
            if kind.startswith("CrossAttn"):
                own, theirs = f"down_blocks.{level}.attentions.{i}", f"input_blocks.{first + i}.1"
                found |= _attention(own, theirs, depths[level])
        found[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
    found |= _attention("mid_block.attentions.0", "middle_block.1", depths[-1])
    for i in (0, 1):
        found |= _residual(f"mid_block.resnets.{i}", f"middle_block.{2 * i}")
    for level, kind in enumerate(config["up_block_types"]):
        crossed = kind.startswith("CrossAttn")
        for i in range(layers + 1):
            place = f"output_blocks.{(layers + 1) * level + i}"
            found |= _residual(f"up_blocks.{level}.resnets.{i}", f"{place}.0")
            if crossed:
                own = f"up_blocks.{level}.attentions.{i}"
                found |= _attention(own, f"{place}.1", depths[-1 - level])
        last = f"output_blocks.{(layers + 1) * level + layers}.{2 if crossed else 1}"
        found[f"up_blocks.{level}.upsamplers.0.conv"] = f"{last}.conv"
    return found


def _attention(own: str, theirs: str, depth: int) -> dict[str, str]:
    found = {f"{own}.{name}": f"{theirs}.{name}" for name in ATTENTION}
    for block in range(depth):
        for name in BLOCK:
            inside = f"transformer_blocks.{block}.{name}"
            found[f"{own}.{inside}"] = f"{theirs}.{inside}"
    return found


def _residual(own: str, theirs: str) -> dict[str, str]:
    return {f"{own}.{name}": f"{theirs}.{part}" for name, part in RESIDUAL.items()}


def of_flow(kind: str, blocks: int, singles: int) -> dict[str, list[str]]:
    """The checkpoint's layers that a LoRA may be on, and diffusers' whose rows they are.

    Args:
        kind: ``sd3`` (mmdit_to_diffusers), ``flux`` or ``flux2`` (flux_to_diffusers), ``z-image``
            (z_image_to_diffusers), or ``qwen-image``, whose checkpoint has diffusers' names.
        singles: of Z-Image, the layers of each of its two refiners.
    """
    if kind == "z-image":
        return dict(_of_z_image(blocks, singles))
    if kind == "qwen-image":
        return {name: [name] for name in _of_qwen_image(blocks)}
    return dict(_of_flow(kind, blocks, singles))


def _of_z_image(layers: int, refiners: int) -> Iterator[tuple[str, list[str]]]:
    stacks = {"layers": layers, "context_refiner": refiners, "noise_refiner": refiners}
    for stack, number in stacks.items():
        for n in range(number):
            block = f"{stack}.{n}"
            yield f"{block}.attention.qkv", [f"{block}.attention.to_{part}" for part in "qkv"]
            yield f"{block}.attention.out", [f"{block}.attention.to_out.0"]
            for part in ("w1", "w2", "w3"):
                yield f"{block}.feed_forward.{part}", [f"{block}.feed_forward.{part}"]
            if stack != "context_refiner":
                yield f"{block}.adaLN_modulation.0", [f"{block}.adaLN_modulation.0"]
    for theirs in ("x_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1"):
        name, _, rest = theirs.partition(".")
        yield theirs, [f"all_{name}.2-1" + (f".{rest}" if rest else "")]
    for same in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2"):
        yield same, [same]


def _of_qwen_image(blocks: int) -> Iterator[str]:
    attention = ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")
    attention += tuple(f"add_{part}_proj" for part in "qkv")
    for n in range(blocks):
        block = f"transformer_blocks.{n}"
        yield from (f"{block}.attn.{part}" for part in attention)
        for side in ("img", "txt"):
            yield from (f"{block}.{side}_mlp.{part}" for part in ("net.0.proj", "net.2"))
            yield f"{block}.{side}_mod.1"
    yield from ("img_in", "txt_in", "proj_out", "norm_out.linear")


def _of_flow(kind: str, blocks: int, singles: int) -> Iterator[tuple[str, list[str]]]:
    for n in range(blocks):
        own = f"transformer_blocks.{n}"
        image = [f"{own}.attn.to_{part}" for part in "qkv"]
        text = [f"{own}.attn.add_{part}_proj" for part in "qkv"]
        if kind == "sd3":
            block = f"joint_blocks.{n}"
            yield f"{block}.x_block.attn.qkv", image
            yield f"{block}.x_block.attn.proj", [f"{own}.attn.to_out.0"]
            yield f"{block}.x_block.attn2.qkv", [f"{own}.attn2.to_{part}" for part in "qkv"]
            yield f"{block}.x_block.attn2.proj", [f"{own}.attn2.to_out.0"]
            yield f"{block}.context_block.attn.qkv", text
            yield f"{block}.context_block.attn.proj", [f"{own}.attn.to_add_out"]
            for side, stream in (("x_block", "ff"), ("context_block", "ff_context")):
                yield f"{block}.{side}.mlp.fc1", [f"{own}.{stream}.net.0.proj"]
                yield f"{block}.{side}.mlp.fc2", [f"{own}.{stream}.net.2"]
            continue
        block = f"double_blocks.{n}"
        for side, rows, out in (("img", image, "to_out.0"), ("txt", text, "to_add_out")):
            yield f"{block}.{side}_attn.qkv", rows
            yield f"{block}.{side}_attn.proj", [f"{own}.attn.{out}"]
            stream = f"{own}.ff" if side == "img" else f"{own}.ff_context"
            inner = ("net.0.proj", "net.2") if kind == "flux" else ("linear_in", "linear_out")
            for number, layer in zip((0, 2), inner, strict=True):
                yield f"{block}.{side}_mlp.{number}", [f"{stream}.{layer}"]
    for n in range(singles):
        own, block = f"single_transformer_blocks.{n}", f"single_blocks.{n}"
        if kind == "flux":
            rows = [*(f"{own}.attn.to_{part}" for part in "qkv"), f"{own}.proj_mlp"]
            yield f"{block}.linear1", rows
            yield f"{block}.linear2", [f"{own}.proj_out"]
        else:
            yield f"{block}.linear1", [f"{own}.attn.to_qkv_mlp_proj"]
            yield f"{block}.linear2", [f"{own}.attn.to_out"]


def updates(
    lora: Mapping[str, Tensor], layers: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str]]:
    """What a file adds to each layer, two-dimensional, and the keys that nothing has a use for.

    Args:
        layers: name of a layer to its place, by each of the names that it has.
    """
    found, left = {}, set(lora)
    for name, place in layers.items():
        key = "lora_unet_" + name.replace(".", "_")
        if f"{key}.diff" in lora:
            found[place] = lora[f"{key}.diff"].flatten(1).float()
            left.remove(f"{key}.diff")
        up, down = f"{key}.lora_up.weight", f"{key}.lora_down.weight"
        if up not in lora:
            continue
        alpha = lora.get(f"{key}.alpha")
        scale = 1.0 if alpha is None else alpha.item() / len(lora[down])
        product = lora[up].flatten(1).float() @ lora[down].flatten(1).float()
        found[place] = scale * product
        left -= {up, down, f"{key}.alpha"}
    return found, sorted(left)


def stacked(rows: list[str], of: Mapping[str, Tensor], network: torch.nn.Module) -> Tensor | None:
    """The update of a checkpoint's layer from those of diffusers' layers that it holds."""
    if not any(name in of for name in rows):
        return None
    layers: list[Any] = [network.get_submodule(name) for name in rows]
    sizes = [(layer.out_features, layer.in_features) for layer in layers]
    return torch.cat([of.get(n, torch.zeros(s)) for n, s in zip(rows, sizes, strict=True)])
