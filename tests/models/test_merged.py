"""A policy fused into a whole pipeline, of every family that has LoRAs."""

from __future__ import annotations

import logging
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
from tests.support.mistakes import line_of
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


def wide(folder: Path, place: Path, **config: Any) -> Path:
    """A pipeline whose decoder has sums beyond 65504."""
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.vae.decoder.conv_in.bias.data.fill_(6e4)
    pipeline.vae.decoder.conv_in.weight.data.fill_(3e3)
    pipeline.vae.register_to_config(**config)
    pipeline.save_pretrained(place)
    return place


def test_a_decoder_that_half_precision_is_too_narrow_for_is_no_export(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def write(base: Path, name: str, dtype: torch.dtype = torch.float16) -> Path:
        model = load_model(
            load_pipeline(str(base)),
            SamplerSettings(steps=2),
            AdapterSettings(rank=2),
            torch.device("cpu"),
        )
        write_policy(model, str(base), tmp_path / name, "merged", dtype)
        return tmp_path / name

    base = wide(folders["sd"], tmp_path / "wide")
    assert "--dtype: the pipeline's decoder overflows" in line_of(lambda: write(base, "half"))
    assert not (tmp_path / "half").exists()
    write(base, "brain", torch.bfloat16)
    raised = write(wide(folders["sdxl"], tmp_path / "xl", force_upcast=True), "raised")
    stock: Any = DiffusionPipeline.from_pretrained(raised, torch_dtype=torch.float16)
    assert render(stock).isfinite().all(), "its stock pipeline decodes in float32 by itself"
    base = wide(folders["sdxl"], tmp_path / "xl-as-it-is", force_upcast=False)
    assert "use bfloat16" in line_of(lambda: write(base, "as-it-is"))


def test_rounding_says_nothing_of_its_own(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    base = folders["sd"]
    model = load_model(
        load_pipeline(str(base)), SamplerSettings(), AdapterSettings(), torch.device("cpu")
    )
    write_policy(model, str(base), tmp_path / "whole", "merged", torch.float16)
    logger.removeHandler(caplog.handler)
    assert caplog.records == []
