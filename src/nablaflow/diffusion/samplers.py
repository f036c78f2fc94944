"""Samplers: each turns a noise schedule and a number of steps into a `ReverseProcess`.

The last step. DDPM's own variance is 0 (or tiny) at k = 1, where scores are divided by it. The
rule here: ``sigma[1]`` is at least ``sigma_floor``; the mean is left as it is. Stable Diffusion's
schedule ends at sigma = 0.0207 with 50 steps and is not touched by the default floor of 0.01.
SDE-DPM-Solver++ ends at the schedule's own least noise, as published (final sigma = sigma_min).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.flow_samplers import flow_process
from nablaflow.diffusion.flow_schedule import FlowSchedule
from nablaflow.diffusion.levels import Levels, ddim_kernels, tabulated
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.diffusion.schedule import check_schedule, to_convert
from nablaflow.diffusion.variance import widened
from nablaflow.errors import UserError, nearest


def _with_start(timesteps: Tensor) -> Tensor:
    return torch.cat([timesteps.new_zeros(1), timesteps.flip(0)]).long()


def _evenly_spaced(
    scheduler: DDIMScheduler | DDPMScheduler, steps: int, final_alpha_bar: Tensor
) -> Levels:
    """Levels of a scheduler whose timesteps are equally far apart.

    For some numbers of steps, such as 61, 'trailing' has by rounding one more, of timestep -1.
    """
    if scheduler.config["timestep_spacing"] == "linspace":
        raise UserError(
            "sampler.name: the model's scheduler spaces its timesteps 'linspace', for which the "
            "levels of DDIM and DDPM do not meet; set timestep_spacing to leading or trailing in "
            "its scheduler_config.json, or use sampler.name=sde-dpmsolver++"
        )
    timestep = _with_start(scheduler.timesteps[:steps])
    if int(timestep.max()) >= len(scheduler.alphas_cumprod):
        raise UserError(
            f"sampler.steps: with the scheduler's steps_offset {steps} steps begin beyond its "
            f"{len(scheduler.alphas_cumprod)} timesteps; use fewer"
        )
    alpha_bar = torch.cat(
        [final_alpha_bar.reshape(1), scheduler.alphas_cumprod[timestep[1:]]]
    ).double()
    return Levels(timestep, alpha_bar)


def _clip(config: Mapping[str, Any]) -> float | None:
    # ``config`` is the model's own: a scheduler made from it would add clipping by default.
    return config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None


def ddim(config: Mapping[str, Any], steps: int, eta: float) -> ReverseProcess:
    """DDIM on the scheduler's timesteps, see `ddim_kernels`."""
    scheduler: Any = DDIMScheduler.from_config(to_convert(config))
    scheduler.set_timesteps(steps)
    levels = _evenly_spaced(scheduler, steps, scheduler.final_alpha_cumprod)
    return ddim_kernels(levels, eta, _clip(config))


def euler(config: Mapping[str, Any], steps: int, eta: float) -> ReverseProcess:
    """DDIM without noise, which in units of flow matching is the Euler step of its ODE."""
    if eta != 1.0:
        raise UserError("sampler.eta: euler adds no noise, so it has no eta; leave it out")
    return ddim(config, steps, 0.0)


def ddpm(config: Mapping[str, Any], steps: int, eta: float) -> ReverseProcess:
    """DDPM (arXiv 2006.11239) with the variance that the model's scheduler names."""
    if eta != 1.0:
        raise UserError("sampler.eta: DDPM has no eta; use sampler.name=ddim or sampler.eta=1")
    scheduler: Any = DDPMScheduler.from_config(to_convert(config))
    scheduler.set_timesteps(steps)
    levels = _evenly_spaced(scheduler, steps, torch.ones(()))
    here, following = levels.pairs()
    kind = str(scheduler.config["variance_type"])
    if kind.startswith("fixed_small"):
        variance = levels.posterior_variance()
    elif kind.startswith("fixed_large"):
        variance = torch.where(levels.timestep > 0, 1.0 - here / following, 0.0)
    else:
        raise UserError(f"sampler.name: a {kind} variance is not supported; use sampler.name=ddim")
    left = (1.0 - here).clamp_min(1e-12)
    return tabulated(
        levels,
        _clip(config),
        from_x=(here / following).sqrt() * (1.0 - following) / left,
        from_x0=following.sqrt() * (1.0 - here / following) / left,
        sigma=variance.sqrt(),
    )


FIRST_ORDER: dict[str, Any] = {
    "algorithm_type": "sde-dpmsolver++",
    "solver_order": 1,
    "final_sigmas_type": "sigma_min",
    "lower_order_final": False,
    "euler_at_final": False,
}
"""What makes diffusers' solver the one of `sde_dpmsolver`."""


def sde_dpmsolver(config: Mapping[str, Any], steps: int, eta: float) -> ReverseProcess:
    """First-order SDE-DPM-Solver++ (arXiv 2211.01095, equation 18), the paper's fast sampler."""
    if eta != 1.0:
        raise UserError("sampler.eta: SDE-DPM-Solver++ has no eta; leave sampler.eta at 1")
    scheduler: Any = DPMSolverMultistepScheduler.from_config(to_convert(config), **FIRST_ORDER)
    scheduler.set_timesteps(steps)
    # Noise over signal; the last is the end's. See `_evenly_spaced` for one too many before it.
    ratio = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]]).double().flip(0)
    levels = Levels(_with_start(scheduler.timesteps[:steps]), 1.0 / (1.0 + ratio.square()))
    here, following = levels.pairs()
    noise, noise_next = (1.0 - here).sqrt(), (1.0 - following).sqrt()
    half_logsnr, half_logsnr_next = (
        (here.sqrt() / noise).log(),
        (following.sqrt() / noise_next).log(),
    )
    h = half_logsnr_next - half_logsnr
    return tabulated(  # the solver does not clip x0_hat, whatever the model's own scheduler does
        levels,
        from_x=noise_next / noise * (-h).exp(),
        from_x0=following.sqrt() * (1.0 - (-2.0 * h).exp()),
        sigma=noise_next * (1.0 - (-2.0 * h).exp()).clamp_min(0.0).sqrt(),
    )


SAMPLERS: dict[str, Callable[[Mapping[str, Any], int, float], ReverseProcess]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "sde-dpmsolver++": sde_dpmsolver,
}
"""Those with noise, whose kernels can be aligned."""

NOISELESS = {"euler": euler}


def build_process(
    schedule: Mapping[str, Any] | FlowSchedule,
    name: str,
    steps: int,
    eta: float,
    sigma_floor: float,
    left_open: Float[Tensor, "levels"] | None = None,
) -> ReverseProcess:
    """The sampler called ``name`` on a model's noise schedule.

    Args:
        schedule: of flow matching, or the configuration of a diffusers scheduler with betas, whose
            timestep spacing and clipping are kept.
        steps: K, at least 2.
        eta: in (0, 1], DDIM's share of DDPM's noise. At 0 there is no kernel to align.
        sigma_floor: least standard deviation of the last kernel, see the module.
        left_open: variance of x_0 given x_k, by k, which the kernels are to have besides, see
            `nablaflow.diffusion.variance`; None: they have the sampler's own alone.

    Raises:
        UserError: for an unknown sampler, or one that the schedule does not allow.
    """
    if isinstance(schedule, FlowSchedule):
        process = flow_process(schedule, name, steps, eta)
    else:
        process = _with_betas(schedule, name, steps, eta)
    if name in NOISELESS:
        _check_no_variance(left_open)
        return process  # without noise, the last step's too
    if left_open is not None:
        _check_widens(schedule, name)
        process = widened(process, left_open)
    last = torch.arange(steps + 1) == 1
    sigma = torch.where(last, process.sigma.clamp_min(sigma_floor), process.sigma)
    return replace(process, sigma=sigma)


def _with_betas(config: Mapping[str, Any], name: str, steps: int, eta: float) -> ReverseProcess:
    known = {**SAMPLERS, **NOISELESS}
    if name not in known:
        raise UserError(f"sampler.name: unknown sampler {name!r}; {nearest(name, known)}")
    check_schedule(config)
    most = int(config.get("num_train_timesteps", 1000))
    if steps > most:
        raise UserError(f"sampler.steps: {steps} are more than the model's {most}; use fewer")
    return known[name](config, steps, eta)


def _check_no_variance(left_open: Float[Tensor, "levels"] | None) -> None:
    if left_open is not None:
        raise UserError(
            "sampler.variance: euler adds no noise, so its steps have no variance; use posterior"
        )


def _check_widens(schedule: Mapping[str, Any] | FlowSchedule, name: str) -> None:
    """Refuse kernels that are not of the posterior's variance, to which nothing can be added."""
    if name == "flow-grpo":
        raise UserError(
            "sampler.variance: flow-grpo's noise is its own, to which analytic has nothing to add; "
            "use sampler.name=memoryless, or sampler.variance=posterior"
        )
    if isinstance(schedule, FlowSchedule) or name != "ddpm":
        return
    if str(schedule.get("variance_type")).startswith("fixed_large"):
        raise UserError(
            "sampler.variance: the model's scheduler has fixed_large variances, to which "
            "analytic has nothing to add; use sampler.name=ddim, or sampler.variance=posterior"
        )
