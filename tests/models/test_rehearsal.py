"""What would fail after hours fails before the first update, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from nablaflow.errors import ExportError, UserError
from nablaflow.models import (
    AdapterSettings,
    SamplerSettings,
    export,
    hand_over,
    load_model,
    load_pipeline,
)
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.rehearsal import rehearse
from tests.support.flow_parts import SMALL
from tests.support.flow_pipelines import flux
from tests.support.pipelines import render, stable_diffusion


def model_of(folder: Path, dtype: torch.dtype = torch.float32, **adapter: Any) -> PipelineModel:
    torch.manual_seed(0)
    return load_model(
        load_pipeline(str(folder), dtype, exact_decoder=True),
        SamplerSettings(steps=4),
        AdapterSettings(**adapter),
        torch.device("cpu"),
    )


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", ["sd", "ddpm"])
def test_it_leaves_the_policy_and_the_disk_as_they_were(
    folders: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    model = model_of(folders[family], kind=kind)
    before = render(model.pipeline)
    assert rehearse(model, str(folders[family]), tmp_path) is None
    assert torch.equal(render(model.pipeline), before)
    assert list(tmp_path.iterdir()) == []


def dropping_out(part: torch.nn.Module) -> int:
    """How many of its layers leave out a third of what they are given, while it trains."""
    part.train()
    layers = [module for module in part.modules() if isinstance(module, torch.nn.Dropout)]
    for layer in layers:
        layer.p = 0.3
    readers = [m for m in part.modules() if isinstance(getattr(m, "dropout", None), float)]
    for reader in readers:  # a CLIP's attention
        reader.dropout = 0.3
    return len(layers) + len(readers)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2"])
def test_a_pipeline_that_is_training_with_dropout_is_compared_without(
    tmp_path: Path, part: str
) -> None:
    pipeline: Any = flux() if part == "text_encoder_2" else stable_diffusion()
    network = getattr(pipeline, part)
    assert dropping_out(network)
    live = hand_over(pipeline)
    given = SMALL | {"name": "memoryless"} if part == "text_encoder_2" else {}
    settings = SamplerSettings(**{"steps": 4, **given})
    borrowed = load_pipeline(live)
    model = load_model(borrowed, settings, AdapterSettings(rank=2), torch.device("cpu"))
    assert rehearse(model, live, tmp_path) is None
    assert network.training


def test_a_lora_whose_scale_would_be_lost_is_found(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untouched LoRA gives the same image with any scale; this one is moved."""
    honest = export.lora_layers

    def unscaled(model: PipelineModel) -> dict[str, torch.Tensor]:
        return {n: v / 8 if "lora_B" in n else v for n, v in honest(model).items()}

    monkeypatch.setattr(export, "lora_layers", unscaled)
    model = model_of(folders["sd"], rank=2, alpha=16.0)
    with pytest.raises(ExportError, match="another image in a stock pipeline"):
        rehearse(model, str(folders["sd"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_scale_beyond_all_numbers_is_no_matter_of_a_learning_rate(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_of(folders["sd"], rank=2, alpha=1e38)
    with pytest.raises(UserError, match=r"before any training.* smaller adapter\.alpha") as caught:
        rehearse(model, str(folders["sd"]), tmp_path)
    assert "learning_rate" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_of_no_finite_image_is_no_matter_of_the_adapter(tmp_path: Path) -> None:
    """Of this variance diffusers takes the root of a logarithm below 0."""
    pipeline = stable_diffusion()
    pipeline.scheduler = DDPMScheduler(variance_type="fixed_large_log")
    pipeline.save_pretrained(tmp_path)
    model = model_of(tmp_path, rank=2)
    with pytest.raises(UserError, match="by its own scheduler, a DDPMScheduler, its image is not"):
        rehearse(model, str(tmp_path), tmp_path)


def test_a_reference_that_is_not_finite_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    model = model_of(folders["sd"])
    bias: Any = model.pipeline.unet.conv_out.bias
    bias.data.fill_(torch.nan)
    with pytest.raises(UserError, match="timestep 751 is not finite, before any training"):
        rehearse(model, str(folders["sd"]), tmp_path)


def test_a_guidance_beyond_all_numbers_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = SamplerSettings(steps=4, guidance_scale=1e38)
    pipeline = load_pipeline(str(folders["sd"]))
    model = load_model(pipeline, settings, AdapterSettings(rank=1), torch.device("cpu"))
    with pytest.raises(
        UserError, match=r"not finite.* use less than sampler\.guidance_scale=1e\+38"
    ):
        rehearse(model, str(folders["sd"]), tmp_path)


def test_a_decoder_that_is_not_finite_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    model = model_of(folders["sd"])
    model.pipeline.vae.decoder.conv_out.bias.data.fill_(torch.inf)
    model.pipeline.vae.decoder.conv_out.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="decoder makes is not finite"):
        rehearse(model, str(folders["sd"]), tmp_path)


def test_a_decoder_that_overflows_in_half_precision_is_said(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_of(folders["sd"], torch.float16)
    assert rehearse(model, str(folders["sd"]), tmp_path) is None
    pipeline: Any = load_pipeline(str(folders["sd"]))
    pipeline.vae.decoder.conv_in.bias.data.fill_(6e4)
    pipeline.vae.decoder.conv_in.weight.data.fill_(3e3)  # sums of the two are beyond 65504
    pipeline.save_pretrained(tmp_path / "wide")
    note = rehearse(model_of(tmp_path / "wide", torch.float16), str(tmp_path / "wide"), tmp_path)
    assert note is not None
    assert "overflows in fp16" in note
    assert "vae.to(torch.float32)" in note
