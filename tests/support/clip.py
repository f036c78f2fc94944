"""CLIP in plain torch, from the key names of its published checkpoints alone.

Written from the paper (Radford et al., arXiv 2103.00020) and the shapes below, with no part of
transformers or open_clip, to compare with.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


@dataclass(frozen=True)
class Tower:
    width: int
    layers: int
    heads: int

    @property
    def inner(self) -> int:
        return 4 * self.width


@dataclass(frozen=True)
class ClipSizes:
    vision: Tower
    text: Tower
    projection: int
    activation: str
    image: int = 224
    patch: int = 14
    positions: int = 77
    vocabulary: int = 49408  # the last two are the marks of a text's start and end


TINY = ClipSizes(Tower(32, 2, 2), Tower(24, 2, 3), 768, "quick_gelu", image=32, patch=8)
VIT_L_14 = ClipSizes(Tower(1024, 24, 16), Tower(768, 12, 12), 768, "quick_gelu")
"""openai/clip-vit-large-patch14."""
VIT_H_14 = ClipSizes(Tower(1280, 32, 16), Tower(1024, 24, 16), 1024, "gelu")
"""laion/CLIP-ViT-H-14-laion2B-s32B-b79K, which PickScore and HPSv2 are finetuned from."""


def random_checkpoint(sizes: ClipSizes, seed: int = 0) -> State:
    """Every tensor of a published ``model.safetensors``, under its name there, of random values."""
    state: State = {}
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, *shape: int, size: float) -> None:
        state[name] = size * torch.randn(shape, generator=generator)

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        draw(f"{name}.weight", out, into, size=into**-0.5)
        if bias:
            draw(f"{name}.bias", out, size=0.1)

    def norm(name: str, width: int) -> None:
        draw(f"{name}.weight", width, size=0.2)
        state[f"{name}.weight"] += 1.0
        draw(f"{name}.bias", width, size=0.1)

    def encoder(name: str, tower: Tower) -> None:
        for index in range(tower.layers):
            layer = f"{name}.encoder.layers.{index}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                linear(f"{layer}.self_attn.{part}", tower.width, tower.width)
            norm(f"{layer}.layer_norm1", tower.width)
            linear(f"{layer}.mlp.fc1", tower.inner, tower.width)
            linear(f"{layer}.mlp.fc2", tower.width, tower.inner)
            norm(f"{layer}.layer_norm2", tower.width)

    wide, width = sizes.vision.width, sizes.text.width
    places = (sizes.image // sizes.patch) ** 2 + 1
    draw("text_model.embeddings.token_embedding.weight", sizes.vocabulary, width, size=1.0)
    draw("text_model.embeddings.position_embedding.weight", sizes.positions, width, size=0.5)
    state["text_model.embeddings.position_ids"] = torch.arange(sizes.positions)[None]
    encoder("text_model", sizes.text)
    norm("text_model.final_layer_norm", width)
    draw("vision_model.embeddings.class_embedding", wide, size=1.0)
    patch = (wide, 3, sizes.patch, sizes.patch)
    draw("vision_model.embeddings.patch_embedding.weight", *patch, size=1 / sizes.patch)
    draw("vision_model.embeddings.position_embedding.weight", places, wide, size=0.5)
    state["vision_model.embeddings.position_ids"] = torch.arange(places)[None]
    norm("vision_model.pre_layrnorm", wide)  # as it is spelt there
    encoder("vision_model", sizes.vision)
    norm("vision_model.post_layernorm", wide)
    linear("visual_projection", sizes.projection, wide, bias=False)
    linear("text_projection", sizes.projection, width, bias=False)
    state["logit_scale"] = torch.tensor(100.0).log()
    return state


def write_folder(folder: Path, sizes: ClipSizes, state: State) -> None:
    """``config.json`` and ``model.safetensors`` as both publishers have them."""
    towers: dict[str, Any] = {}
    for name, tower in (("text", sizes.text), ("vision", sizes.vision)):
        towers[f"{name}_config"] = {
            "model_type": f"clip_{name}_model",
            "hidden_act": sizes.activation,
            "hidden_size": tower.width,
            "intermediate_size": tower.inner,
            "num_attention_heads": tower.heads,
            "num_hidden_layers": tower.layers,
            "projection_dim": sizes.projection,
            "layer_norm_eps": 1e-5,
        }
    # What they say of the marks is not what their tokenizers do.
    towers["text_config"] |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    towers["text_config"] |= {
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.positions,
    }
    towers["vision_config"] |= {"image_size": sizes.image, "patch_size": sizes.patch}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": sizes.projection,
        "logit_scale_init_value": 2.6592,
        **towers,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


_OPEN_CLIP = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_projection.weight", "text_projection"),
    ("self_attn.out_proj.", "attn.out_proj."),
    ("self_attn.", "attn."),
    ("layer_norm", "ln_"),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)


def open_clip_layout(state: State) -> State:
    """The same tensors under the names, and in the form, that open_clip's checkpoints have."""
    found: State = {}
    for name, value in state.items():
        if name.endswith("position_ids") or re.search(r"\.[kv]_proj\.", name):
            continue
        if ".q_proj." in name:
            value = torch.cat([state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            name = name.replace("q_proj.", "in_proj_")
        elif name in ("visual_projection.weight", "text_projection.weight"):
            value = value.T.contiguous()
        for own, other in _OPEN_CLIP:
            name = name.replace(own, other)
        found[name] = value
    return found


def image_features(state: State, sizes: ClipSizes, pixels: Tensor) -> Tensor:
    """Embeddings (batch, projection), of length 1, of normalised images."""
    name = "vision_model"
    patches = F.conv2d(
        pixels, state[f"{name}.embeddings.patch_embedding.weight"], stride=sizes.patch
    )
    first = state[f"{name}.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches.flatten(2).mT], dim=1)
    x = x + state[f"{name}.embeddings.position_embedding.weight"]
    x = _encode(state, name, sizes.vision, sizes, _norm(state, f"{name}.pre_layrnorm", x), None)
    x = _norm(state, f"{name}.post_layernorm", x[:, 0])
    return F.normalize(_linear(state, "visual_projection", x), dim=-1)


def text_features(state: State, sizes: ClipSizes, texts: list[list[int]]) -> Tensor:
    """Embeddings (text, projection), of length 1; each text is tokens up to the mark of its end."""
    name = "text_model"
    rows = []
    for text in texts:
        x = state[f"{name}.embeddings.token_embedding.weight"][text]
        x = (x + state[f"{name}.embeddings.position_embedding.weight"][: len(text)])[None]
        ahead = torch.full((len(text), len(text)), -torch.inf).triu(1)
        x = _encode(state, name, sizes.text, sizes, x, ahead)
        x = _norm(state, f"{name}.final_layer_norm", x[0, -1])
        rows.append(F.normalize(_linear(state, "text_projection", x), dim=-1))
    return torch.stack(rows)


def _encode(
    state: State, name: str, tower: Tower, sizes: ClipSizes, x: Tensor, mask: Tensor | None
) -> Tensor:
    for index in range(tower.layers):
        layer = f"{name}.encoder.layers.{index}"
        before = _norm(state, f"{layer}.layer_norm1", x)
        q, k, v = (
            _linear(state, f"{layer}.self_attn.{part}_proj", before)
            .unflatten(-1, (tower.heads, -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        logits = q @ k.mT / q.shape[-1] ** 0.5
        weights = (logits if mask is None else logits + mask).softmax(-1)
        seen = (weights @ v).transpose(1, 2).flatten(2)
        x = x + _linear(state, f"{layer}.self_attn.out_proj", seen)
        inner = _linear(state, f"{layer}.mlp.fc1", _norm(state, f"{layer}.layer_norm2", x))
        bent = F.gelu(inner) if sizes.activation == "gelu" else inner * (1.702 * inner).sigmoid()
        x = x + _linear(state, f"{layer}.mlp.fc2", bent)
    return x


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)
