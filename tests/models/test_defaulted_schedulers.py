"""What a folder's scheduler leaves to its class's defaults, the report's lines say."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from nablaflow.diffusion import trajectory_noise
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.export import save_policy
from nablaflow.report.loading import Saved
from tests.support.pipelines import PROMPT, render, stable_diffusion, stable_diffusion_xl

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("made", "scheduler"),
    [
        (stable_diffusion, {"_class_name": "PNDMScheduler"}),
        (stable_diffusion, {"_class_name": "DDPMScheduler"}),
        (stable_diffusion, {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}),
        (stable_diffusion_xl, {"_class_name": "HeunDiscreteScheduler"}),
        (
            stable_diffusion_xl,
            {"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"},
        ),
    ],
    ids=["steps_offset", "clip_sample", "sigmoid betas", "another class's clip", "last level"],
)
@torch.no_grad()
def test_the_reports_lines_sample_as_the_policy(
    tmp_path: Path, made: Any, scheduler: dict[str, str]
) -> None:
    """Stable Diffusion's pipeline sets an offset and no clipping, which from_config drops again."""
    pipeline = made()
    pipeline.scheduler = getattr(diffusers, scheduler["_class_name"])()
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(BETAS | scheduler))
    settings = SamplerSettings(steps=4, guidance_scale=5.0, sigma_floor=1e-9)
    model = load_model(
        load_pipeline(str(tmp_path)), settings, AdapterSettings(rank=2), torch.device("cpu")
    )
    with model.reference():
        own = model.decode(model.sample([PROMPT], trajectory_noise([3])).x0)
    call = model.stock_call(PROMPT) | model.stock_steps()
    kind, told = type(pipeline).__name__, model.stock_scheduler()
    code = Saved(tmp_path, False, kind, "", call, scheduler=told).code()
    names: dict[str, Any] = {}
    exec("\n".join(code.splitlines()[:-1]), names)
    found = render(names["pipeline"], steps=4, seed=3, guidance_scale=5.0, eta=1.0)
    torch.testing.assert_close(found, own, rtol=0, atol=1e-4)
    assert len(code) < 1000, "a thousand betas are not spelled out"


@pytest.mark.parametrize("made", [stable_diffusion, stable_diffusion_xl])
def test_a_whole_model_leaves_unsaid_what_its_reference_did(tmp_path: Path, made: Any) -> None:
    """Of Euler's class a spacing that is not said is linspace, which DDIM makes leading of."""
    pipeline, first = made(), tmp_path / "reference"
    pipeline.scheduler = diffusers.EulerDiscreteScheduler()
    pipeline.save_pretrained(first)
    config = BETAS | {"_class_name": "EulerDiscreteScheduler"}
    (first / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    settings, device = SamplerSettings(steps=3), torch.device("cpu")
    model = load_model(load_pipeline(str(first)), settings, AdapterSettings(kind="full"), device)
    whole = save_policy(model, str(first), tmp_path)
    again = load_model(load_pipeline(str(whole)), settings, AdapterSettings(), device)
    assert again.process.timestep.equal(model.process.timestep)
    assert again.process.alpha_bar.equal(model.process.alpha_bar)
    kind, scheduler = type(pipeline).__name__, model.stock_scheduler()
    code = Saved(whole, False, kind, "", {}, scheduler=scheduler).code()
    names: dict[str, Any] = {}
    exec("\n".join(code.splitlines()[:-1]), names)
    names["pipeline"].scheduler.set_timesteps(3)
    assert names["pipeline"].scheduler.timesteps.flip(0).equal(model.process.timestep[1:])


def test_betas_that_a_folder_leaves_to_its_class_are_those_of_its_class(tmp_path: Path) -> None:
    """Heun's defaults are others than DDIM's."""
    pipeline = stable_diffusion()
    pipeline.scheduler = diffusers.HeunDiscreteScheduler()
    pipeline.save_pretrained(tmp_path)
    config = {"_class_name": "HeunDiscreteScheduler", "timestep_spacing": "leading"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    model = load_model(
        load_pipeline(str(tmp_path)), SamplerSettings(), AdapterSettings(), torch.device("cpu")
    )
    process, levels = model.process, pipeline.scheduler.alphas_cumprod
    torch.testing.assert_close(process.alpha_bar[1:].float(), levels[process.timestep[1:].long()])
    kind, told = model.stock_scheduler() or ("", {})
    stock = getattr(diffusers, kind).from_config(model.pipeline.scheduler.config, **told)
    assert stock.alphas_cumprod.equal(levels)
