"""Every kernel against diffusers' own scheduler, over whole trajectories with the same noise."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from nablaflow.diffusion import (
    SAMPLERS,
    ReverseProcess,
    build_process,
    kernel_mean,
    predict_from,
)
from nablaflow.diffusion.kernels import clip_x0
from nablaflow.diffusion.process import at
from nablaflow.errors import UserError
from nablaflow.models import SamplerSettings
from tests.support.schedules import DDPM, STABLE_DIFFUSION

SHAPE = (2, 3, 4, 4)
STEPS = 20
PARAMETERIZATIONS = ["epsilon", "v_prediction", "sample"]


def network(x: Tensor, timestep: int) -> Tensor:
    """Some smooth function: a sampler's step must agree whatever the network says."""
    return torch.sin(1.7 * x + timestep / 90) + 0.3 * x.roll(1, dims=-1)


def step(
    process: ReverseProcess, x: Tensor, k: int, noise: Tensor, parameterization: str
) -> Tensor:
    steps = torch.full((len(x),), k)
    output = network(x, int(process.timestep[k]))
    prediction = predict_from(output, x, at(process.alpha_bar, steps, x), parameterization)
    mean = kernel_mean(process, x, clip_x0(process, prediction), steps)
    return mean + at(process.sigma, steps, x) * noise


def assert_same_trajectory(process: ReverseProcess, scheduler: Any, **options: Any) -> None:
    """Each step from the same state with the same noise, then the whole chain on its own."""
    timesteps = scheduler.timesteps.tolist()
    assert process.timestep[1:].flip(0).tolist() == timesteps
    assert int(process.timestep[0]) == 0
    parameterization = scheduler.config.prediction_type
    start = torch.Generator().manual_seed(0)
    theirs = ours = torch.randn(SHAPE, generator=start, dtype=torch.float64)
    for k, timestep in zip(range(process.steps, 0, -1), timesteps, strict=True):
        if isinstance(scheduler, DDPMScheduler):  # draws its own noise, none at timestep 0
            noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(k)).double()
            drawn = {"generator": torch.Generator().manual_seed(k)}
        else:
            noise = torch.randn(SHAPE, generator=start, dtype=torch.float64)
            drawn = {"variance_noise": noise}
        if isinstance(scheduler, DPMSolverMultistepScheduler):
            noise = noise.float()  # it works in float32 inside
            drawn = {"variance_noise": noise}
        output = network(theirs, timestep)
        alone = step(process, theirs, k, noise, parameterization)
        ours = step(process, ours, k, noise, parameterization)
        theirs = scheduler.step(output, timestep, theirs, **drawn, **options).prev_sample
        torch.testing.assert_close(alone, theirs.to(alone), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-3, atol=1e-3)


@pytest.fixture(autouse=True)
def _float32_noise_of_ddpm(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDPMScheduler draws in the output's dtype; drawn in float32 it is the noise given to us."""
    from diffusers.schedulers import scheduling_ddpm

    draw = scheduling_ddpm.randn_tensor

    def in_float32(*args: Any, **options: Any) -> Tensor:
        dtype = options.pop("dtype")
        return draw(*args, **options, dtype=torch.float32).to(dtype)

    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", in_float32)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_steps_as_diffusers_does_with_stable_diffusions_betas(
    parameterization: str, eta: float, spacing: str
) -> None:
    changes = {"prediction_type": parameterization, "timestep_spacing": spacing}
    config = STABLE_DIFFUSION | changes
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(STEPS)
    process = build_process(config, "ddim", STEPS, eta, sigma_floor=0.0)
    assert_same_trajectory(process, scheduler, eta=eta)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip_range", [None, 1.0, 0.6])
def test_ddim_steps_as_diffusers_does_with_linear_betas(
    parameterization: str, eta: float, clip_range: float | None
) -> None:
    config = DDPM | {
        "prediction_type": parameterization,
        "clip_sample": clip_range is not None,
        "clip_sample_range": clip_range or 1.0,
    }
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(STEPS)
    process = build_process(config, "ddim", STEPS, eta, sigma_floor=0.0)
    assert process.clip == clip_range
    assert_same_trajectory(process, scheduler, eta=eta)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (DDPM, {}),
        (DDPM, {"clip_sample": False, "timestep_spacing": "trailing"}),
        (STABLE_DIFFUSION, {}),
    ],
    ids=["linear", "linear-trailing", "stable-diffusion"],
)
def test_ddpm_steps_as_diffusers_does(
    variance: str, parameterization: str, base: dict[str, Any], changes: dict[str, Any]
) -> None:
    config = base | changes | {"variance_type": variance, "prediction_type": parameterization}
    scheduler = DDPMScheduler.from_config(config)
    scheduler.set_timesteps(STEPS)
    process = build_process(config, "ddpm", STEPS, 1.0, sigma_floor=0.0)
    assert_same_trajectory(process, scheduler)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("base", [STABLE_DIFFUSION, DDPM], ids=["stable-diffusion", "linear"])
def test_sde_dpmsolver_steps_as_diffusers_does(
    parameterization: str, spacing: str, base: dict[str, Any]
) -> None:
    config = base | {"prediction_type": parameterization, "timestep_spacing": spacing}
    scheduler = DPMSolverMultistepScheduler.from_config(
        config,
        algorithm_type="sde-dpmsolver++",
        solver_order=1,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(STEPS)
    process = build_process(config, "sde-dpmsolver++", STEPS, 1.0, sigma_floor=0.0)
    assert_same_trajectory(process, scheduler)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("base", [STABLE_DIFFUSION, DDPM], ids=["stable-diffusion", "linear"])
def test_signal_power_is_the_schedules_own_at_each_timestep(
    name: str, base: dict[str, Any]
) -> None:
    scaled = base["beta_schedule"] == "scaled_linear"
    power = 0.5 if scaled else 1.0
    betas = np.linspace(base["beta_start"] ** power, base["beta_end"] ** power, 1000) ** (1 / power)
    expected = np.cumprod(1.0 - betas)
    process = build_process(base, name, STEPS, 1.0, sigma_floor=0.01)
    visited = process.alpha_bar[1:].numpy()
    np.testing.assert_allclose(visited, expected[process.timestep[1:].numpy()], rtol=1e-4)
    # The generated state: clean, or as noisy as the schedule's first level where that is the rule.
    ends_clean = name == "ddpm" or (name == "ddim" and base is DDPM)
    final = 1.0 if ends_clean else expected[0]
    assert process.alpha_bar[0].item() == pytest.approx(final, rel=1e-5)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_keeps_the_marginals_of_the_noising_process(eta: float) -> None:
    """With the true x0 and noise, x_{k-1} has the signal and the variance of its own level."""
    process = build_process(STABLE_DIFFUSION, "ddim", STEPS, eta, sigma_floor=0.0)
    here, following = process.alpha_bar[1:].double(), process.alpha_bar[:-1].double()
    from_x = process.from_x[1:].double()
    signal = process.from_x0[1:].double() + from_x * here.sqrt()
    noise = process.from_epsilon[1:].double() + from_x * (1 - here).sqrt()
    torch.testing.assert_close(signal, following.sqrt(), rtol=1e-5, atol=1e-6)
    variance = noise.square() + process.sigma[1:].double().square()
    torch.testing.assert_close(variance, 1 - following, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_the_last_steps_sigma_has_a_floor_and_nothing_else_changes(name: str) -> None:
    bare = build_process(DDPM, name, STEPS, 1.0, sigma_floor=0.0)
    floored = build_process(DDPM, name, STEPS, 1.0, sigma_floor=0.01)
    assert bare.sigma[1] < 1e-6
    assert floored.sigma[1].item() == pytest.approx(0.01)
    assert torch.equal(floored.sigma[2:], bare.sigma[2:])
    for table in ("alpha_bar", "from_x", "from_x0", "from_epsilon", "timestep"):
        assert torch.equal(getattr(floored, table), getattr(bare, table))


def test_the_default_floor_leaves_stable_diffusion_alone() -> None:
    floor = SamplerSettings().sigma_floor
    bare = build_process(STABLE_DIFFUSION, "ddim", 50, 1.0, sigma_floor=0.0)
    floored = build_process(STABLE_DIFFUSION, "ddim", 50, 1.0, sigma_floor=floor)
    assert torch.equal(floored.sigma, bare.sigma)
    assert bare.sigma[1].item() == pytest.approx(0.0207, abs=1e-4)


@pytest.mark.parametrize("steps", [2, 7, 50])
@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("base", [STABLE_DIFFUSION, DDPM], ids=["stable-diffusion", "linear"])
def test_every_kernel_is_finite_and_has_noise(name: str, steps: int, base: dict[str, Any]) -> None:
    process = build_process(base, name, steps, 1.0, sigma_floor=0.01)
    assert process.steps == steps
    assert (process.sigma[1:] >= 0.009).all()
    assert (process.alpha_bar.diff() < 0).all()
    for table in ("alpha_bar", "from_x", "from_x0", "from_epsilon", "sigma"):
        assert getattr(process, table).isfinite().all()


def test_an_unknown_sampler_is_an_error_and_not_another_one() -> None:
    with pytest.raises(UserError, match=r"sampler\.name.*'ddims'.*did you mean ddim\?"):
        build_process(STABLE_DIFFUSION, "ddims", STEPS, 1.0, sigma_floor=0.01)
    with pytest.raises(
        UserError, match=r"sampler\.name.*'heun'.*ddim, ddpm, euler, sde-dpmsolver\+\+"
    ):
        build_process(STABLE_DIFFUSION, "heun", STEPS, 1.0, sigma_floor=0.01)


def test_euler_is_the_stock_ddim_without_noise() -> None:
    process = build_process(STABLE_DIFFUSION, "euler", STEPS, 1.0, sigma_floor=0.01)
    assert process.sigma.eq(0).all()
    scheduler: Any = DDIMScheduler.from_config(STABLE_DIFFUSION)
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    theirs = ours = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64)
    for k, timestep in zip(range(STEPS, 0, -1), scheduler.timesteps, strict=True):
        epsilon, steps = torch.sin(theirs), torch.full((2,), k)
        alpha_bar = process.alpha_bar[k].double()
        theirs = scheduler.step(epsilon, timestep, theirs, eta=0.0).prev_sample.double()
        ours = kernel_mean(
            process, ours, predict_from(torch.sin(ours), ours, alpha_bar, "epsilon"), steps
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_euler_does_not_have_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^sampler\.eta: euler adds no noise[^\n]*$"):
        build_process(STABLE_DIFFUSION, "euler", STEPS, 0.5, sigma_floor=0.01)
    wide = torch.ones(STEPS + 1)
    with pytest.raises(UserError, match=r"^sampler\.variance: euler adds no noise[^\n]*$"):
        build_process(STABLE_DIFFUSION, "euler", STEPS, 1.0, sigma_floor=0.01, left_open=wide)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_linspace_is_refused_where_the_levels_do_not_meet(name: str) -> None:
    config = STABLE_DIFFUSION | {"timestep_spacing": "linspace"}
    with pytest.raises(UserError, match=r"linspace.*leading or trailing"):
        build_process(config, name, STEPS, 1.0, sigma_floor=0.01)


@pytest.mark.parametrize("name", ["ddpm", "sde-dpmsolver++"])
def test_an_eta_that_a_sampler_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"sampler\.eta"):
        build_process(STABLE_DIFFUSION, name, STEPS, 0.5, sigma_floor=0.01)


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"thresholding": True}, "ddim", "thresholding"),
        ({"variance_type": "learned_range"}, "ddpm", "learned_range"),
        ({"variance_type": "learned"}, "ddim", "learned variance"),
        ({"use_karras_sigmas": True}, "sde-dpmsolver++", "use_karras_sigmas"),
        ({"use_beta_sigmas": True}, "ddim", "use_beta_sigmas"),
        ({"interpolation_type": "log_linear"}, "ddim", "spaced log_linear"),
        ({"use_flow_sigmas": True}, "sde-dpmsolver++", "flow matching"),
        ({"prediction_type": "flow_prediction"}, "ddim", "flow matching"),
        ({"prediction_type": "velocity"}, "ddim", "prediction_type 'velocity'"),
        ({"timestep_type": "continuous"}, "ddim", "EDM"),
        ({"rescale_betas_zero_snr": True}, "ddim", "zero terminal SNR"),
        ({"trained_betas": [0.1, 0.5, 1.0]}, "ddim", "zero terminal SNR"),
        ({"snr_shift_scale": 3.0}, "ddim", "snr_shift_scale"),
        ({"steps_offset": 1.0}, "ddim", "steps_offset 1.0"),
        ({"steps_offset": -1}, "ddim", "steps_offset -1"),
        ({"clip_sample_range": None}, "ddim", "clip_sample_range None"),
        ({"clip_sample_range": -1.0}, "ddpm", r"clip_sample_range -1\.0"),
    ],
)
def test_a_scheduler_without_a_fixed_gaussian_kernel_is_refused(
    changes: dict[str, Any], name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_process(DDPM | changes, name, 2, 1.0, sigma_floor=0.01)


RESCALED = DDIMScheduler(rescale_betas_zero_snr=True).betas.double()


@pytest.mark.parametrize(
    ("changes", "setting", "mended"),
    [
        (
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr to false",
            {"rescale_betas_zero_snr": False},
        ),
        *(
            ({"trained_betas": [*RESCALED[:-1].tolist(), 1 - left]}, "trained_betas", None)
            for left in (0.0, 1e-7, 1e-5)
        ),
        ({"trained_betas": [0.1, 0.5, 1 - 2e-7]}, "trained_betas", {"trained_betas": [0.1, 0.5]}),
        ({"beta_schedule": "linear", "beta_end": 1.0}, "beta_end", {"beta_end": 0.02}),
    ],
)
def test_no_signal_or_next_to_none_is_refused_with_epsilon_by_its_setting(
    changes: dict[str, Any], setting: str, mended: dict[str, Any] | None
) -> None:
    config = DDPM | changes | {"timestep_spacing": "trailing"}
    config["num_train_timesteps"] = len(changes.get("trained_betas", range(1000)))
    with pytest.raises(UserError, match=rf"zero terminal SNR.*; set {setting}.* v_prediction$"):
        build_process(config, "ddim", 2, 1.0, sigma_floor=0.01)
    capped = {"trained_betas": [*RESCALED[:-1].tolist(), 0.999]}
    config |= capped if mended is None else mended
    config["num_train_timesteps"] = len(config.get("trained_betas") or range(1000))
    build_process(config, "ddim", 2, 1.0, sigma_floor=0.01)


@pytest.mark.parametrize("timesteps", [50, 1000])
def test_a_cosine_whose_last_beta_is_capped_is_none_without_signal(timesteps: int) -> None:
    config = DDPM | {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": timesteps}
    process = build_process(
        config | {"timestep_spacing": "trailing"}, "ddim", 10, 1.0, sigma_floor=0.01
    )
    assert 0 < process.alpha_bar[-1] < 1e-6


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (FlowMatchEulerDiscreteScheduler(), "has no betas"),
        (EDMEulerScheduler(), "as EDM does"),
        (UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "flow"),
    ],
)
def test_another_kind_of_process_is_refused(scheduler: Any, named: str) -> None:
    for name in SAMPLERS:
        with pytest.raises(UserError, match=named):
            build_process(scheduler.config, name, STEPS, 1.0, sigma_floor=0.01)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_clipping_is_the_models_own_and_not_a_default_of_the_sampler(name: str) -> None:
    """Stable Diffusion comes with a PNDM scheduler, whose configuration does not speak of it."""
    silent = {key: value for key, value in STABLE_DIFFUSION.items() if key != "clip_sample"}
    assert build_process(silent, name, 4, 1.0, 0.01).clip is None
    assert build_process(DDPM, name, 4, 1.0, 0.01).clip == 1.0


@pytest.mark.parametrize("name", ["ddim", "ddpm", "sde-dpmsolver++"])
def test_more_steps_than_the_model_has_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"sampler\.steps: 1001 are more than the model's 1000"):
        build_process(STABLE_DIFFUSION, name, 1001, 1.0, 0.01)


def test_steps_that_begin_beyond_the_schedule_are_refused() -> None:
    """With an offset of 1 the first of a thousand steps would be timestep 1000 of 0 to 999."""
    with pytest.raises(UserError, match=r"sampler\.steps: .* use fewer"):
        build_process(STABLE_DIFFUSION, "ddim", 1000, 1.0, sigma_floor=0.01)


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        (DDPMScheduler(beta_schedule="sigmoid", beta_end=0.02), "ddpm"),
        (DDPMScheduler(beta_schedule="sigmoid", prediction_type="sample"), "sde-dpmsolver++"),
        (HeunDiscreteScheduler(beta_schedule="exp", timestep_spacing="leading"), "ddim"),
    ],
)
def test_beta_schedules_that_not_all_classes_know_are_the_models_own(
    scheduler: Any, name: str
) -> None:
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    process = build_process(config, name, 5, 1.0, sigma_floor=0.01)
    levels = scheduler.alphas_cumprod[process.timestep[1:].long()]
    torch.testing.assert_close(process.alpha_bar[1:], levels.to(process.alpha_bar))


def test_a_solver_that_ends_at_its_least_sigma_ends_there_by_ddim_too() -> None:
    scheduler = EulerDiscreteScheduler(
        timestep_spacing="leading", steps_offset=1, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(STEPS)
    process = build_process(scheduler.config, "ddim", STEPS, 1.0, sigma_floor=0.01)
    last = float(scheduler.sigmas[-1])
    assert float(process.alpha_bar[0]) == pytest.approx(1 / (1 + last**2), rel=1e-6)
    assert last > 0
