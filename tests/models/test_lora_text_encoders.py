"""LoRAs of flow matching that change the text encoders too: the weights are those of an own sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nablaflow.models import WithLora, load_pipeline
from tests.support.flow_parts import CLIP_WIDTH
from tests.support.mistakes import line_of

LAYERS = [f"encoder.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
CLIPS = {
    "flux-dev": {"text_encoder": "lora_te1_"},
    "sd3": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
}
"""Parts that the stock pipeline loads a LoRA into, and kohya's names for them."""
T5 = "encoder_block_0_layer_0_SelfAttention_q"
"""A layer of a T5 with its dots as underscores."""


def layer(path: str, down: Tensor, up: Tensor, *, kohya: bool) -> dict[str, Tensor]:
    """A layer's tensors; by kohya's names its scale is 3 / 2, else there is none."""
    if not kohya:
        return {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    told = {f"{path}.alpha": torch.tensor(3.0)}
    return {f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up} | told


def at(pipeline: Any, part: str, path: str) -> Tensor:
    encoder = getattr(pipeline, part)
    return getattr(encoder, "text_model", encoder).get_submodule(path).weight


def of_the_denoiser(pipeline: Any, *, kohya: bool) -> dict[str, Tensor]:
    attention = "transformer_blocks.0.attn.to_q"
    rows, columns = pipeline.transformer.get_submodule(attention).weight.shape
    path = f"transformer.{attention}"
    if kohya:
        path = f"lora_transformer_{attention.replace('.', '_')}"
    return layer(path, torch.randn(2, columns), torch.randn(rows, 2), kohya=kohya)


@pytest.mark.parametrize("alone", [False, True], ids=["with the denoiser", "alone"])
@pytest.mark.parametrize("kohya", [False, True], ids=["diffusers", "kohya"])
@pytest.mark.parametrize("family", CLIPS)
def test_they_are_fused_too(
    folders: dict[str, Path], tmp_path: Path, family: str, kohya: bool, alone: bool
) -> None:
    torch.manual_seed(0)
    base: Any = load_pipeline(str(folders[family]))
    state, wanted = {} if alone else of_the_denoiser(base, kohya=kohya), {}
    for part, short in CLIPS[family].items():
        for path in LAYERS:
            down, up = torch.randn(2, CLIP_WIDTH), torch.randn(CLIP_WIDTH, 2)
            whole = f"text_model.{path}"
            name = f"{short}{whole.replace('.', '_')}" if kohya else f"{part}.{whole}"
            state |= layer(name, down, up, kohya=kohya)
            weight = at(base, part, path)
            wanted[part, path] = weight + 0.5 * (1.5 if kohya else 1.0) * up @ down
    file = tmp_path / "x.safetensors"
    save_file(state, file)
    fused = load_pipeline(WithLora(str(folders[family]), file, 0.5))
    for (part, path), value in wanted.items():
        torch.testing.assert_close(at(fused, part, path), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("short", ["lora_te2_", "lora_te3_"])
@pytest.mark.parametrize("family", CLIPS)
def test_what_would_be_left_out_is_refused(
    folders: dict[str, Path], tmp_path: Path, family: str, short: str
) -> None:
    """Of a T5, into which diffusers loads none and says nothing."""
    base: Any = load_pipeline(str(folders[family]))
    state = of_the_denoiser(base, kohya=True)
    state |= layer(f"{short}{T5}", torch.ones(2, 16), torch.ones(16, 2), kohya=True)
    file = tmp_path / "x.safetensors"
    save_file(state, file)
    source = WithLora(str(folders[family]), file, 1.0)
    line = line_of(lambda: load_pipeline(source))
    assert f"model_lora: {file}" in line
    assert f"holds {short}{T5}" in line
