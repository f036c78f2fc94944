"""The classes of unconditional pipelines beside `DDPMPipeline`, against their own images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, PNDMPipeline, PNDMScheduler

from nablaflow.diffusion import trajectory_noise
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from tests.support.pipelines import render, unconditional

DIGITS = Path(__file__).parents[2] / "benchmarks/models/digits"
CPU = torch.device("cpu")


@torch.no_grad()
def sampled(folder: Path, **sampler: Any) -> torch.Tensor:
    settings = SamplerSettings(**{"steps": 4, "sigma_floor": 1e-9, **sampler})
    model = load_model(load_pipeline(str(folder)), settings, AdapterSettings(), CPU)
    return model.decode(model.sample([""], trajectory_noise([3])).x0)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 1.0), ("euler", 0.0)])
@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler(clip_sample=False)])
def test_ddims_class_gives_its_own_images(
    tmp_path: Path, scheduler: Any, sampler: str, eta: float
) -> None:
    DDIMPipeline(unconditional().unet, scheduler).save_pretrained(tmp_path)
    expected = render(load_pipeline(str(tmp_path)), steps=4, seed=3, eta=eta)
    torch.testing.assert_close(sampled(tmp_path, name=sampler), expected, rtol=0, atol=1e-4)


def test_pndms_class_is_the_same_model_by_our_kernels(tmp_path: Path) -> None:
    """Its own steps are no kernels; its UNet and its betas are those of a DDIM without a clip."""
    unet, scheduler = unconditional().unet, DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    PNDMPipeline(unet, PNDMScheduler()).save_pretrained(tmp_path / "pndm")
    DDIMPipeline(unet, scheduler).save_pretrained(tmp_path / "ddim")
    assert torch.equal(sampled(tmp_path / "pndm"), sampled(tmp_path / "ddim"))


@torch.no_grad()
def test_a_grey_models_stock_image_is_grey_in_three_channels() -> None:
    model = load_model(load_pipeline(str(DIGITS)), SamplerSettings(steps=4), AdapterSettings(), CPU)
    given = {"generator": torch.Generator().manual_seed(0)}
    image = model.stock_image(model.pipeline, "", **given)
    assert image.shape == (1, *model.decode(torch.zeros(1, *model.state_shape)).shape[1:])
    assert torch.equal(image[:, 0], image[:, 2])
