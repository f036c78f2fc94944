"""The noise levels of flow matching: which s a sampler visits, and what they are in alpha_bar.

Flow matching (arXiv 2210.02747, 2403.03206) noises by x_s = (1 - s) x_0 + s epsilon. Divided by
n_s = sqrt((1 - s)^2 + s^2) that is sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) epsilon with

    alpha_bar = (1 - s)^2 / n_s^2,

the state of every kernel, estimator and method here; only the network sees x_s itself.

A schedule is a row of evenly spaced s, shifted towards the noise, s -> m s / (1 + (m - 1) s), the
more so the larger the image is: m is a constant (Stable Diffusion 3) or, for `exponential` shifts,
e^mu with mu linear in the number of image tokens (FLUX). It ends where a stock pipeline's does, at
s = 0. The network is never asked there: its last evaluation is at the least s above 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.levels import Levels
from nablaflow.diffusion.schedule import WHERE
from nablaflow.errors import UserError

Grid = Literal["trained", "even"]
"""Before the shift: from 1 to the least s that was trained, or 1, (K - 1)/K, ..., 1/K."""

SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True)
class FlowSchedule:
    """A flow-matching scheduler, and what its pipeline tells it.

    Attributes:
        config: of a `FlowMatchEulerDiscreteScheduler`.
        grid: the row of s that the pipeline gives it.
        mu: of the dynamic shift at the image's size; not used where the shift is static.
    """

    config: Mapping[str, Any]
    grid: Grid = "trained"
    mu: float | None = None


def shift_by_tokens(config: Mapping[str, Any], tokens: int, max_shift: float = 1.15) -> float:
    """The mu of a dynamic shift, linear in the number of an image's tokens.

    Args:
        max_shift: where the configuration has none; pipelines differ.

    Raises:
        UserError: the configuration has one number of tokens for both ends, or no number.
    """
    if not config.get("use_dynamic_shifting"):
        return 0.0  # and nothing reads it
    ends = {"base_image_seq_len": 256, "max_image_seq_len": 4096}
    ends |= {"base_shift": 0.5, "max_shift": max_shift}
    found = {name: config.get(name, default) for name, default in ends.items()}
    for name, value in found.items():
        if not _is_number(value):
            raise _no_levels(name, value)
    few, many, low, high = found.values()
    if few == many:
        raise UserError(
            f"model: base_image_seq_len and max_image_seq_len in its {WHERE} are both {few}, and "
            "the shift lies between them; use those that the model was trained with"
        )
    return low + (high - low) * (tokens - few) / (many - few)


def flow_levels(schedule: FlowSchedule, steps: int) -> Levels:
    """The noise levels of ``steps`` network evaluations.

    Raises:
        UserError: the scheduler has other levels than these, or fewer.
    """
    check_flow_schedule(schedule.config)
    most = int(schedule.config.get("num_train_timesteps", 1000))
    if steps > most:
        raise UserError(f"sampler.steps: {steps} are more than the model's {most}; use fewer")
    s = flow_sigmas(schedule, steps)
    if not bool((s.diff() > 0).all()):
        if schedule.config.get("use_dynamic_shifting"):
            raise _no_levels("the shift by base_shift and max_shift of", schedule.mu)
        raise _no_levels("shift", schedule.config.get("shift"))
    return Levels(timestep=(most * s).float(), alpha_bar=alpha_bar_of(s))


def alpha_bar_of(s: Tensor) -> Tensor:
    """Signal power of the state x_s / n_s."""
    return (1.0 - s).square() / ((1.0 - s).square() + s.square())


def flow_sigmas(schedule: FlowSchedule, steps: int) -> Float[Tensor, "levels"]:
    """S by k = 0, ..., ``steps``: 0 at k = 0, then rising to 1; float64."""
    config = schedule.config
    s = torch.linspace(1.0, _least(schedule, steps), steps, dtype=torch.float64)
    s = _shifted(s, _shift(schedule))
    if config.get("shift_terminal"):
        s = 1.0 - (1.0 - s) * (1.0 - config["shift_terminal"]) / (1.0 - s[-1])
    return torch.cat([s, s.new_zeros(1)]).flip(0)


def _least(schedule: FlowSchedule, steps: int) -> float:
    """The last of the row before its shift."""
    if schedule.grid == "even":
        return 1.0 / steps
    least = 1.0 / schedule.config.get("num_train_timesteps", 1000)
    if schedule.config.get("use_dynamic_shifting"):
        return least
    # A static shift is in the scheduler's bounds already, and then applied to the row as well.
    return float(_shifted(torch.tensor(least, dtype=torch.float64), _shift(schedule)))


def _shift(schedule: FlowSchedule) -> float:
    config = schedule.config
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    assert schedule.mu is not None
    linear = config.get("time_shift_type", "exponential") == "linear"
    mu = torch.tensor(schedule.mu, dtype=torch.float64)
    return float(mu if linear else mu.exp())  # infinite, where math.exp would raise


def _shifted(s: Tensor, shift: float) -> Tensor:
    return shift * s / (1.0 + (shift - 1.0) * s)


def check_flow_schedule(config: Mapping[str, Any]) -> None:
    """Refuse a scheduler whose levels or whose network are not those of flow matching.

    Raises:
        UserError: it is of another kind of process, or spaces its levels in another way.
    """
    if "beta_schedule" in config or "shift" not in config:
        raise UserError(
            "model: its scheduler is not one of flow matching with a shift, which its network was "
            "trained with; use the FlowMatchEulerDiscreteScheduler of the model it comes from"
        )
    if "upscale_mode" in config:
        raise UserError(
            "model: its scheduler is one of a model distilled to few steps (FlowMatchLCM), whose "
            "steps are no kernel here; use the FlowMatchEulerDiscreteScheduler of the model it "
            "comes from"
        )
    _check_numbers(config)
    for name in SPACINGS:
        if config.get(name):
            raise UserError(
                f"model: its scheduler spaces its noise levels by {name}, which no kernel here "
                f"has; set {name} to false in its {WHERE}"
            )
    if config.get("stochastic_sampling"):
        raise UserError(
            "model: its scheduler samples with noise of its own (stochastic_sampling), which no "
            f"kernel here has; set stochastic_sampling to false in its {WHERE}"
        )
    if config.get("invert_sigmas"):
        raise UserError(
            "model: its scheduler counts noise from the image's side (invert_sigmas), which no "
            f"kernel here does; set invert_sigmas to false in its {WHERE} if the network allows it"
        )


def _check_numbers(config: Mapping[str, Any]) -> None:
    terminal = config.get("shift_terminal")
    sound = {
        "shift": _is_positive(config["shift"]) or bool(config.get("use_dynamic_shifting")),
        "num_train_timesteps": _is_positive(config.get("num_train_timesteps", 1000)),
        "shift_terminal": not terminal or (_is_number(terminal) and 0 < terminal < 1),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise _no_levels(name, config[name])


def _no_levels(name: str, value: Any) -> UserError:
    return UserError(
        f"model: {name} {value!r} in its {WHERE} makes no noise levels; use the one that the model "
        "was trained with"
    )


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
