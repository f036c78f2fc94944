"""A single file whose weights are no numbers without their scales is refused before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from nablaflow.models import load_pipeline, single_file
from tests.support.mistakes import line_of
from tests.support.pipelines import stable_diffusion


@pytest.mark.parametrize(
    ("scale", "kind"),
    [
        ("scaled_fp8", torch.float8_e4m3fn),
        ("model.diffusion_model.out.scale_weight", torch.float8_e4m3fn),
        ("model.diffusion_model.out.weight_scale", torch.float8_e5m2),
        ("model.diffusion_model.out.comfy_quant", torch.float8_e4m3fn),
        ("model.diffusion_model.out.weight.absmax", torch.uint8),
        ("model.diffusion_model.out.weight.quant_state.bitsandbytes__nf4", torch.uint8),
        ("model.diffusion_model.out.bias", torch.int8),
    ],
)
@pytest.mark.parametrize("beside", ["model.diffusion_model.input_blocks.0.x", "double_blocks.0.x"])
def test_a_file_of_scaled_weights_is_refused_by_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str, kind: torch.dtype, beside: str
) -> None:
    """diffusers leaves the scales out, with a warning or none: the model is another then.

    So does the conversion that a transformer alone is answered with.
    """
    monkeypatch.setattr(single_file.StableDiffusionPipeline, "from_single_file", None)
    file = tmp_path / "model.safetensors"
    weight = torch.ones(2, 2).to(kind)
    save_file({f"{beside}.weight": weight, scale: torch.ones(1)}, file)
    line = line_of(lambda: load_pipeline(str(file)))
    assert "is quantized (" in line
    assert "give the same model in bf16" in line


def test_eight_bits_without_scales_are_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As files for ComfyUI have them: rounded, and read as they are."""
    read = staticmethod(lambda path, **options: stable_diffusion())
    monkeypatch.setattr(single_file.StableDiffusionPipeline, "from_single_file", read)
    file = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.x": torch.ones(1).to(torch.float8_e4m3fn)}, file)
    assert isinstance(load_pipeline(str(file)), StableDiffusionPipeline)
