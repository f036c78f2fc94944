"""How the laboratory noises: as diffusion does, or on the straight lines of flow matching.

``diffusion``: the log of signal over noise follows a logistic distribution of scale 1.5 about 0, so
that the steps are small between pure noise and near clean states, and x_K remembers nothing of x_0
(alpha_bar_K of 1e-5), which the tilt needs.

``flow``: x_s = (1 - s) x_0 + s epsilon (arXiv 2209.03003) with s evenly spaced from 1 to 0, in the
units of `nablaflow.diffusion.flow_schedule`. It begins at pure noise, alpha_bar_K = 0; whether x_K
is forgotten on the way depends on the sampler's noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nablaflow.diffusion import FlowSchedule, check_variance
from nablaflow.diffusion.flow_schedule import alpha_bar_of
from nablaflow.errors import UserError, nearest

TIMESTEPS = 1000
LOG_SNR_SCALE = 1.5
SIGNAL_FLOOR = 1e-3  # of sqrt(alpha_bar) where it is divided by; pure noise has none


def _alpha_bar() -> Tensor:
    time = (torch.arange(TIMESTEPS, dtype=torch.float64) + 0.5) / TIMESTEPS
    return torch.sigmoid(-LOG_SNR_SCALE * torch.logit(time))


ALPHA_BAR = _alpha_bar()
"""Of diffusion, by timestep, float64."""


def schedule() -> dict[str, object]:
    """Of diffusion, as a diffusers scheduler's configuration."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), ALPHA_BAR[:-1]])
    return {
        "num_train_timesteps": TIMESTEPS,
        "trained_betas": (1.0 - ALPHA_BAR / before).tolist(),
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }


def flow_schedule() -> FlowSchedule:
    """Of flow matching, without a shift."""
    return FlowSchedule({"num_train_timesteps": TIMESTEPS, "shift": 1.0})


@dataclass(frozen=True)
class NoisePath:
    """One way to noise.

    Attributes:
        alpha_bar: by timestep, float64.
        schedule: for `build_process`.
        samplers: the first is the default.
    """

    alpha_bar: Callable[[Tensor], Tensor]
    schedule: Callable[[], Mapping[str, Any] | FlowSchedule]
    samplers: tuple[str, ...]

    def signal(self, timestep: Tensor) -> Tensor:
        """sqrt(alpha_bar), to divide by."""
        return self.alpha_bar(timestep).sqrt().clamp_min(SIGNAL_FLOOR)


DIFFUSION = NoisePath(lambda timestep: ALPHA_BAR[timestep], schedule, ("ddim", "euler"))
FLOW = NoisePath(
    lambda timestep: alpha_bar_of(timestep.double() / TIMESTEPS),
    flow_schedule,
    ("memoryless", "flow-grpo", "euler"),
)
PATHS = {"diffusion": DIFFUSION, "flow": FLOW}

WIDENED = ("ddim", "memoryless")
"""Samplers whose kernels can have the variance ``analytic``, which is their default."""


@dataclass(frozen=True)
class Sampling:
    """The path, the sampler and the variance of its kernels, by name."""

    path: str
    sampler: str
    variance: str

    @staticmethod
    def named(
        path: str, sampler: str | None, variance: str | None, fields: tuple[str, str, str]
    ) -> Sampling:
        """With the defaults for what is None.

        Args:
            fields: what the three are called where they come from.

        Raises:
            UserError: a name that is none, or a variance that the sampler cannot have.
        """
        if path not in PATHS:
            raise UserError(f"{fields[0]}: no process {path!r}; {nearest(path, PATHS)}")
        known = PATHS[path].samplers
        sampler = known[0] if sampler is None else sampler
        if sampler not in known:
            raise UserError(
                f"{fields[1]}: {path} has no sampler {sampler!r}; {nearest(sampler, known)}"
            )
        own = "analytic" if sampler in WIDENED else "posterior"
        variance = own if variance is None else variance
        check_variance(variance, fields[2])
        if variance == "analytic" and own != "analytic":
            raise UserError(
                f"{fields[2]}: {sampler}'s steps have their own noise, or none; leave it out"
            )
        return Sampling(path, sampler, variance)
