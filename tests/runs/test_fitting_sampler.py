"""Samples of a model as it is, with schedulers that no kernel here can honour; and what is said."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from nablaflow.errors import UserError
from nablaflow.models import (
    AdapterSettings,
    SamplerSettings,
    hand_over,
    load_model,
    load_pipeline,
)
from nablaflow.runs.sample import sample_images
from tests.support.flow_pipelines import flux, sd3
from tests.support.pipelines import PROMPT, stable_diffusion, unconditional

OF_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
ANOTHER = "sampled with euler, since its own scheduler, {}, is no sampler here"
EVEN = "the scheduler's {} is left out; its noise levels are evenly spaced here"
SCHEDULERS: dict[str, tuple[Any, str]] = {
    "UniPC": (UniPCMultistepScheduler(**OF_FLOW), ANOTHER.format("UniPCMultistepScheduler")),
    "DPM": (DPMSolverMultistepScheduler(**OF_FLOW), ANOTHER.format("DPMSolverMultistepScheduler")),
    "DPM Karras": (
        DPMSolverMultistepScheduler(**OF_FLOW, use_karras_sigmas=True),
        EVEN.format("use_karras_sigmas"),
    ),
    "LCM": (FlowMatchLCMScheduler(shift=3.0), ANOTHER.format("FlowMatchLCMScheduler")),
    "Karras": (
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True),
        EVEN.format("use_karras_sigmas"),
    ),
    "exponential": (
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_exponential_sigmas=True),
        EVEN.format("use_exponential_sigmas"),
    ),
    "noise": (
        FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
        "the scheduler's stochastic_sampling is left out; its steps add no noise here",
    ),
}


def images(pipeline: Any, **asked: Any) -> torch.Tensor:
    return sample_images(hand_over(pipeline), [PROMPT], 1, 3, of_model=asked)[0]


def said_by(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines besides those about the progress."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if not line.startswith("0:00:")]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_flow_model_is_sampled_by_euler_at_the_shift_of_its_scheduler(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain: Any = sd3()
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected = images(plain)
    assert said_by(capsys) == [], "nothing differs, and nothing is trained"
    pipeline: Any = sd3()
    pipeline.scheduler, said = SCHEDULERS[name]
    before = dict(pipeline.scheduler.config)
    torch.testing.assert_close(images(pipeline), expected, rtol=0, atol=0)
    assert any(line.startswith(said) for line in said_by(capsys))
    assert dict(pipeline.scheduler.config) == before
    other: Any = sd3()
    other.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    assert (images(other) - expected).abs().max() > 1e-3, "the shift is seen"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_none_of_these_is_trained_on(name: str) -> None:
    pipeline: Any = sd3()
    pipeline.scheduler, _ = SCHEDULERS[name]
    borrowed, settings = load_pipeline(hand_over(pipeline)), SamplerSettings(name="memoryless")
    with pytest.raises(UserError, match="model: its scheduler"):
        load_model(borrowed, settings, AdapterSettings(), torch.device("cpu"))


def test_a_shift_by_size_is_a_solvers_too(capsys: pytest.CaptureFixture[str]) -> None:
    by_size = {"use_dynamic_shifting": True}
    small = {"height": 8, "width": 8}
    plain: Any = flux()
    plain.scheduler = FlowMatchEulerDiscreteScheduler(**by_size)
    pipeline: Any = flux()
    pipeline.scheduler = UniPCMultistepScheduler(**OF_FLOW, **by_size)
    torch.testing.assert_close(images(pipeline, **small), images(plain, **small), rtol=0, atol=0)
    assert "UniPCMultistepScheduler, is no sampler here" in capsys.readouterr().err


def test_other_steps_than_eulers_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline: Any = sd3()
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    images(pipeline)
    assert said_by(capsys) == [ANOTHER.format("FlowMatchHeunDiscreteScheduler")]


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(),
        UniPCMultistepScheduler(use_flow_sigmas=True),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        FlowMatchLCMScheduler(invert_sigmas=True),
    ],
)
def test_what_is_no_flow_of_the_networks_is_refused_still(scheduler: Any) -> None:
    pipeline: Any = sd3()
    pipeline.scheduler = scheduler
    with pytest.raises(UserError, match=r"^model: its scheduler"):
        images(pipeline)


def test_other_spacings_of_betas_are_left_out_whatever_sampler_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline: Any = unconditional()
    pipeline.scheduler = DPMSolverMultistepScheduler(timestep_spacing="leading")
    expected = images(pipeline, sampler="ddpm")
    pipeline.scheduler.register_to_config(use_karras_sigmas=True)
    torch.testing.assert_close(images(pipeline, sampler="ddpm"), expected, rtol=0, atol=0)
    evenly = "the scheduler's use_karras_sigmas is left out; its timesteps are evenly spaced here"
    assert said_by(capsys) == [evenly]


def test_a_schedule_of_few_timesteps_has_as_many_steps(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline: Any = unconditional()
    pipeline.scheduler = DDIMScheduler(num_train_timesteps=12)
    images(pipeline)
    assert "sampled with 12 steps, since its scheduler has no more" in capsys.readouterr().err


def without_a_size(pipeline: Any) -> Any:
    pipeline.unet.register_to_config(sample_size=None)
    return pipeline


def spaced_linspace(pipeline: Any) -> Any:
    pipeline.scheduler = DDIMScheduler(timestep_spacing="linspace")
    return pipeline


@pytest.mark.parametrize(
    ("make", "asked", "said"),
    [
        (sd3, {"height": 18}, "--height: 18 pixels are not a multiple of 4"),
        (sd3, {"width": 64}, "--width: its transformer has positions for images of up to 32"),
        (sd3, {"sampler": "ddpm"}, "--sampler: flow matching has no sampler 'ddpm'"),
        (sd3, {"height": 10**5}, "--height: must be less than or equal to 16384"),
        (unconditional, {"width": 16}, "--width: an unconditional pipeline makes images of 8x8"),
        (
            lambda: without_a_size(stable_diffusion()),
            {},
            "no default; set --height and --width, in multiples of 8",
        ),
        (
            lambda: spaced_linspace(stable_diffusion()),
            {"sampler": "ddim"},
            "or use --sampler=sde-dpmsolver++",
        ),
    ],
)
def test_a_mistake_is_told_by_the_options_of_the_command(
    make: Any, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        images(make(), **asked)
    assert said in str(caught.value)
    assert "sampler." not in str(caught.value)
    assert "\n" not in str(caught.value)
