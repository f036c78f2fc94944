"""Samplers of flow-matching models: what noise the reverse process adds.

``memoryless`` (arXiv 2409.08861): the kernel is q(x_{k-1} | x_k, x_0) at x0_hat, in the limit an
SDE of noise g^2 = 2 s / (1 - s). The state at s = 1 then says nothing about the generated image, as
the tilt of the image's law by its reward requires; it is DDIM with eta 1 in the units here.

``flow-grpo`` (arXiv 2505.05470, equation 9): less noise, g = 0.7 sqrt(s / (1 - s)). The image still
depends on the noise it began with, so what a method aims at is not the tilt.

``euler``: no noise, the step x + (s' - s) v of the stock scheduler. It is ``ddim`` with eta 0
exactly, since x + (s' - s) v = (1 - s') x0_hat + s' epsilon, which over n_s' is DDIM's mean. There
is no kernel to align; but a policy that was aligned under memoryless noise may be sampled by it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nablaflow.diffusion.flow_schedule import FlowSchedule, flow_levels, flow_sigmas
from nablaflow.diffusion.levels import Levels, ddim_kernels, tabulated
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError, nearest

FLOW_GRPO_NOISE = 0.7  # a of g = a sqrt(s / (1 - s)) (arXiv 2505.05470, section 5.1)

Kernels = Callable[[Levels, Tensor, float], ReverseProcess]
"""``(levels, s by k, eta)`` to the kernels."""


def memoryless(levels: Levels, s: Tensor, eta: float) -> ReverseProcess:
    """The posterior's kernels."""
    if eta != 1.0:
        raise UserError("sampler.eta: memoryless noise has no eta; use sampler.name=ddim")
    return ddim_kernels(levels, 1.0)


def flow_grpo(levels: Levels, s: Tensor, eta: float) -> ReverseProcess:
    """Euler-Maruyama steps of Flow-GRPO's SDE.

    From s to s', with d = s - s': mean (1 - s') x0_hat + (s' - g^2 d / (2 s)) epsilon and variance
    g^2 d of x_s'. At s = 1, where g is infinite, it is taken at the next level, as published.
    """
    if eta != 1.0:
        raise UserError("sampler.eta: flow-grpo has no eta; use sampler.name=ddim")
    following = torch.cat([s[:1], s[:-1]])
    finite = torch.where(s == 1.0, following, s)
    variance = FLOW_GRPO_NOISE**2 * s / (1.0 - finite) * (s - following)
    unit = ((1.0 - following).square() + following.square()).sqrt()
    return tabulated(
        levels,
        from_x0=(1.0 - following) / unit,
        from_epsilon=(following - variance / (2.0 * s).clamp_min(1e-12)) / unit,
        sigma=variance.sqrt() / unit,
    )


def euler(levels: Levels, s: Tensor, eta: float) -> ReverseProcess:
    """The stock scheduler's steps."""
    if eta != 1.0:
        raise UserError("sampler.eta: euler adds no noise, so it has no eta; leave it out")
    return ddim_kernels(levels, 0.0)


FLOW_SAMPLERS: dict[str, Kernels] = {
    "euler": euler,
    "memoryless": memoryless,
    "flow-grpo": flow_grpo,
    "ddim": lambda levels, s, eta: ddim_kernels(levels, eta),
}


def flow_process(schedule: FlowSchedule, name: str, steps: int, eta: float) -> ReverseProcess:
    """The sampler called ``name`` at a schedule's levels.

    Raises:
        UserError: flow matching has no sampler of this name, or the schedule no such levels.
    """
    if name not in FLOW_SAMPLERS:
        raise UserError(
            f"sampler.name: flow matching has no sampler {name!r}; {nearest(name, FLOW_SAMPLERS)}"
        )
    return FLOW_SAMPLERS[name](flow_levels(schedule, steps), flow_sigmas(schedule, steps), eta)
