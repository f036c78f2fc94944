"""`nablaflow sample` on folders with the schedulers that people have, and what it says aloud."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import (
    CMStochasticIterativeScheduler,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from PIL import Image

from tests.cli.conftest import Cli

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "ddim": (DDIMScheduler(**BETAS), ""),
    "ddpm": (DDPMScheduler(beta_schedule="sigmoid"), ""),
    "pndm": (PNDMScheduler(**BETAS), "sampled with ddim, since its own scheduler, PNDM"),
    "heun": (HeunDiscreteScheduler(**BETAS, timestep_spacing="trailing"), "scheduler, Heun"),
    "euler": (EulerDiscreteScheduler(**BETAS), "sampled with sde-dpmsolver++, since"),
    "dpm": (DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True), "use_karras_sigmas"),
}


def with_scheduler(folder: Path, scheduler: SchedulerMixin, place: Path) -> Path:
    shutil.copytree(folder, place)
    scheduler.save_pretrained(place / "scheduler")
    index = json.loads((place / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (place / "model_index.json").write_text(json.dumps(index))
    return place


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_a_folder_is_sampled_and_what_differs_is_said(
    cli: Cli, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    scheduler, said = SCHEDULERS[name]
    folder = with_scheduler(tiny_model, scheduler, tmp_path / "model")
    done = cli("sample", folder, "--n", 1, "--prompt", "a circle", "--out", "a")
    assert done.exit_code == 0, done.stderr
    assert said in done.stderr
    assert ("sampled with" in done.stderr) == (said != "")


def test_the_sampler_and_the_size_can_be_asked_for(cli: Cli, tiny_model: Path) -> None:
    common = ("sample", tiny_model, "--n", 1, "--prompt", "a circle")
    options = ("--sampler", "ddpm", "--height", 24, "--width", 32)
    done = cli(*common, *options, "--out", "a")
    assert done.exit_code == 0, done.stderr
    picture = next(path for path in Path("a").glob("0*.png"))
    assert Image.open(picture).size == (32, 24)
    refused = cli(*common, "--sampler", "eulr", "--out", "b")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("nablaflow: --sampler: unknown sampler 'eulr'")


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (FlowMatchEulerDiscreteScheduler(), "no betas"),
        (DDIMScheduler(**BETAS, rescale_betas_zero_snr=True), "zero terminal SNR"),
        (CogVideoXDDIMScheduler(snr_shift_scale=3.0), "snr_shift_scale"),
        (CMStochasticIterativeScheduler(), "as EDM does"),
    ],
)
def test_what_no_kernel_can_honour_is_one_line(
    cli: Cli, tiny_model: Path, tmp_path: Path, scheduler: SchedulerMixin, named: str
) -> None:
    folder = with_scheduler(tiny_model, scheduler, tmp_path / "model")
    refused = cli("sample", folder, "--n", 1, "--prompt", "a circle", "--out", "a")
    assert refused.exit_code == 2
    assert named in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not Path("a").exists()
