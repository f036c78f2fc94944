"""ImageReward in plain torch, from the key names of its published checkpoint alone.

Written from the papers (BLIP, arXiv 2201.12086; ViT; BERT) and the shapes below, with no part of
transformers, to compare with.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nablaflow.rewards.blip import BlipSizes

State = dict[str, Tensor]
TINY = BlipSizes(
    image=32,
    patch=16,
    vision_width=24,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=4,
    text_inner=32,
    positions=40,
    vocabulary=60,
)


def random_checkpoint(sizes: BlipSizes, seed: int = 0) -> State:
    """Every tensor that the published file has, under its name there, with random values."""
    state: State = {}
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, *shape: int) -> None:
        inputs = torch.Size(shape[1:]).numel() if len(shape) > 1 else 16
        state[name] = torch.randn(shape, generator=generator) / max(inputs, 16) ** 0.5

    def linear(name: str, out: int, into: int) -> None:
        draw(f"{name}.weight", out, into)
        draw(f"{name}.bias", out)

    def norm(name: str, width: int) -> None:
        draw(f"{name}.weight", width)
        draw(f"{name}.bias", width)
        state[f"{name}.weight"] += 1.0

    image, text = "blip.visual_encoder", "blip.text_encoder"
    wide, width = sizes.vision_width, sizes.text_width
    draw(f"{image}.cls_token", 1, 1, wide)
    draw(f"{image}.pos_embed", 1, (sizes.image // sizes.patch) ** 2 + 1, wide)
    draw(f"{image}.patch_embed.proj.weight", wide, 3, sizes.patch, sizes.patch)
    draw(f"{image}.patch_embed.proj.bias", wide)
    for index in range(sizes.vision_layers):
        block = f"{image}.blocks.{index}"
        norm(f"{block}.norm1", wide)
        norm(f"{block}.norm2", wide)
        linear(f"{block}.attn.qkv", 3 * wide, wide)
        linear(f"{block}.attn.proj", wide, wide)
        linear(f"{block}.mlp.fc1", 4 * wide, wide)
        linear(f"{block}.mlp.fc2", wide, 4 * wide)
    norm(f"{image}.norm", wide)
    state[f"{text}.embeddings.position_ids"] = torch.arange(sizes.positions)[None]
    draw(f"{text}.embeddings.word_embeddings.weight", sizes.vocabulary, width)
    draw(f"{text}.embeddings.position_embeddings.weight", sizes.positions, width)
    norm(f"{text}.embeddings.LayerNorm", width)
    for index in range(sizes.text_layers):
        layer = f"{text}.encoder.layer.{index}"
        for part, source in (("attention", width), ("crossattention", wide)):
            linear(f"{layer}.{part}.self.query", width, width)
            linear(f"{layer}.{part}.self.key", width, source)
            linear(f"{layer}.{part}.self.value", width, source)
            linear(f"{layer}.{part}.output.dense", width, width)
            norm(f"{layer}.{part}.output.LayerNorm", width)
        linear(f"{layer}.intermediate.dense", sizes.text_inner, width)
        linear(f"{layer}.output.dense", width, sizes.text_inner)
        norm(f"{layer}.output.LayerNorm", width)
    linear("blip.vision_proj", 256, wide)
    linear("blip.text_proj", 256, width)
    for index, (into, out) in {0: (width, 1024), 2: (1024, 128), 4: (128, 64)}.items():
        linear(f"mlp.layers.{index}", out, into)
    linear("mlp.layers.6", 16, 64)
    linear("mlp.layers.7", 1, 16)
    for name in list(state):
        if name.startswith("mlp."):  # scores then have the size of the published ones
            state[name] *= 0.7
    return state


def score(state: State, sizes: BlipSizes, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """ImageReward of normalised images (batch, 3, size, size) and token ids (batch, length)."""
    hidden = _read(state, sizes, _see(state, sizes, images), tokens, mask)[:, 0]
    for index in (0, 2, 4, 6, 7):
        hidden = _linear(state, f"mlp.layers.{index}", hidden)
    return (hidden[:, 0] - 0.16717362830052426) / 1.0333394966054072


def _see(state: State, sizes: BlipSizes, images: Tensor) -> Tensor:
    image = "blip.visual_encoder"
    patches = F.conv2d(
        images,
        state[f"{image}.patch_embed.proj.weight"],
        state[f"{image}.patch_embed.proj.bias"],
        stride=sizes.patch,
    )
    first = state[f"{image}.cls_token"].expand(len(images), -1, -1)
    x = torch.cat([first, patches.flatten(2).mT], dim=1) + state[f"{image}.pos_embed"]
    for index in range(sizes.vision_layers):
        block = f"{image}.blocks.{index}"
        q, k, v = _linear(state, f"{block}.attn.qkv", _norm(state, f"{block}.norm1", x)).chunk(
            3, -1
        )
        x = x + _linear(state, f"{block}.attn.proj", _attend(q, k, v, sizes.vision_heads))
        inner = F.gelu(_linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", x)))
        x = x + _linear(state, f"{block}.mlp.fc2", inner)
    return _norm(state, f"{image}.norm", x)


def _read(state: State, sizes: BlipSizes, patches: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    text = "blip.text_encoder"
    words = state[f"{text}.embeddings.word_embeddings.weight"][tokens]
    places = state[f"{text}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = _norm(state, f"{text}.embeddings.LayerNorm", words + places, eps=1e-12)
    for index in range(sizes.text_layers):
        layer = f"{text}.encoder.layer.{index}"
        for part in ("attention", "crossattention"):
            itself = part == "attention"
            source = x if itself else patches
            q = _linear(state, f"{layer}.{part}.self.query", x)
            k = _linear(state, f"{layer}.{part}.self.key", source)
            v = _linear(state, f"{layer}.{part}.self.value", source)
            seen = _attend(q, k, v, sizes.text_heads, mask if itself else None)
            added = x + _linear(state, f"{layer}.{part}.output.dense", seen)
            x = _norm(state, f"{layer}.{part}.output.LayerNorm", added, eps=1e-12)
        inner = F.gelu(_linear(state, f"{layer}.intermediate.dense", x))
        added = x + _linear(state, f"{layer}.output.dense", inner)
        x = _norm(state, f"{layer}.output.LayerNorm", added, eps=1e-12)
    return x


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: State, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention (batch, length, width) in so many heads; ``mask`` is 0 for padding."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(mask[:, None, None, :] == 0, -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
