"""Steps that a schedule has not evenly, and betas for fewer timesteps than it says."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from nablaflow.diffusion import trajectory_noise
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, hand_over, load_model, load_pipeline
from nablaflow.models.pipelines import PipelineModel
from tests.support.pipelines import PROMPT, render, stable_diffusion, unconditional
from tests.support.schedules import DDPM, STABLE_DIFFUSION

ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
TRAILING: dict[str, Any] = STABLE_DIFFUSION | ZERO_SNR | {"timestep_spacing": "trailing"}


def model_of(pipeline: Any, **sampler: Any) -> PipelineModel:
    source = load_pipeline(hand_over(pipeline))
    settings = SamplerSettings(**{"sigma_floor": 1e-9, **sampler})
    return load_model(source, settings, AdapterSettings(rank=2), torch.device("cpu"))


@pytest.mark.parametrize(("steps", "even"), [(4, True), (8, True), (7, False), (30, False)])
@torch.no_grad()
def test_a_note_says_where_a_stock_ddims_images_are_others(steps: int, even: bool) -> None:
    pipeline = stable_diffusion("v_prediction")
    pipeline.scheduler = DDIMScheduler(**TRAILING)
    model = model_of(pipeline, steps=steps)
    with model.reference():
        found = model.decode(model.sample([PROMPT], trajectory_noise([3])).x0)
    stock = render(pipeline, steps=steps, seed=3, guidance_scale=1.0, eta=1.0)
    note = model.note_on([PROMPT])
    assert ((found - stock).abs().max() <= 1e-4) == even == (note is None)
    if note is not None:
        assert f"sampler.steps: {steps} trailing timesteps of 1000 are not even" in note
        assert f"; {8 if steps == 7 else 25} steps are even" in note


def test_a_pixel_models_are_said_too() -> None:
    pipeline = unconditional()
    pipeline.scheduler = DDPMScheduler(**DDPM | {"timestep_spacing": "trailing"})
    note = model_of(pipeline, name="ddpm", steps=3).note_on([""])
    assert note is not None
    assert "a stock DDPM takes them for even" in note
    assert model_of(pipeline, name="ddpm", steps=2).note_on([""]) is None
    assert model_of(pipeline, name="sde-dpmsolver++", steps=3).note_on([""]) is None


def test_betas_for_fewer_timesteps_than_it_says_are_named() -> None:
    """With fewer steps there would still be none, which was the remedy."""
    pipeline = unconditional()
    betas = {"trained_betas": [0.01] * 50, "num_train_timesteps": 1000}
    pipeline.scheduler = DDPMScheduler(**DDPM | betas)
    with pytest.raises(UserError, match=r"has betas for 50 .* set num_train_timesteps to 50"):
        model_of(pipeline, steps=2)
