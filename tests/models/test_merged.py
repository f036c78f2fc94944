"""A policy fused into a whole pipeline, of every family that has LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.export import save_policy
from nablaflow.models.formats import write_policy
from tests.support.flow_parts import SMALL
from tests.support.flow_pipelines import FLOW_FAMILIES
from tests.support.pipelines import perturb, render

FAMILIES = ["sd", "sdxl", "sd3", "flux-dev", "klein", "z-image", "qwen-image", "chroma"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_pipeline_gives_the_loras_image(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    base, size = folders[family], SMALL if family in FLOW_FAMILIES else {}
    torch.manual_seed(0)
    model = load_model(
        load_pipeline(str(base)),
        SamplerSettings(steps=2, **size),
        AdapterSettings(rank=2, alpha=3.0),
        torch.device("cpu"),
    )
    perturb(model.network)
    stock: Any = DiffusionPipeline.from_pretrained(base, safety_checker=None)
    untouched = render(stock, **size)
    stock.load_lora_weights(save_policy(model, str(base), tmp_path))
    write_policy(model, str(base), tmp_path / "whole", "merged", torch.float32)
    whole = DiffusionPipeline.from_pretrained(tmp_path / "whole", safety_checker=None)
    expected = render(stock, **size)
    torch.testing.assert_close(render(whole, **size), expected, rtol=0, atol=1e-4)
    assert (expected - untouched).abs().max() > 0.01
