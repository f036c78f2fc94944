"""What a folder's scheduler leaves to its class's defaults, the report's lines say."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from nablaflow.diffusion import trajectory_noise
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
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
