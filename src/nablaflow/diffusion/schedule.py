"""What a scheduler's configuration has to be for Gaussian kernels on its own noise schedule.

A class name says little: one class holds betas, Karras' sigmas or flow matching by its settings. So
it is the settings that are looked at, whatever class wrote them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DDIMScheduler

from nablaflow.diffusion.prediction import PARAMETERIZATIONS
from nablaflow.errors import UserError

SPACINGS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
)
"""Settings by which a solver visits noise levels that are none of its timesteps'."""

TIMESTEPS = ("leading", "trailing", "linspace")
TRAINED = "use the one that the model was trained with"
WHERE = "scheduler/scheduler_config.json"


COMMON = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Beta schedules that every class knows; some have others besides."""
_DEFAULTED = "_use_default_values"
OF_TRAINING = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
"""Settings that the network was trained with: of its scheduler's class, said or not."""


def to_convert(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration for another class's ``from_config``, which goes by its own defaults.

    diffusers marks what a folder left to the defaults of its scheduler's class. A pipeline then
    corrects some of that (Stable Diffusion's steps_offset and clip_sample), and the mark stays:
    without it the corrected values count, and so do those that are `OF_TRAINING`. A beta schedule
    that is not `COMMON` is given in numbers, and where a solver ends at its least sigma, DDIM ends
    at its first level.
    """
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    known = inspect.signature(kind).parameters if isinstance(kind, type) else {}
    if "beta_schedule" in known and config.get("beta_schedule") not in COMMON:
        own: Any = kind
        config = {**config, "trained_betas": own.from_config(config).betas.tolist()}
    ends = not known or "final_sigmas_type" in known
    if ends and config.get("final_sigmas_type") == "sigma_min":
        config = {"set_alpha_to_one": False, **config}
    still = [name for name in left_unsaid(config) if name not in OF_TRAINING]
    return {**config, _DEFAULTED: still}


def left_unsaid(config: Mapping[str, Any]) -> list[str]:
    """Names of what a folder left to the defaults of its scheduler's class, and is as they say."""
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    known = inspect.signature(kind).parameters if isinstance(kind, type) else {}
    return [
        name
        for name in config.get(_DEFAULTED, ())
        if name not in known or known[name].default == config.get(name)
    ]


def other_spacings(config: Mapping[str, Any]) -> list[str]:
    """Those of `SPACINGS` that a configuration has on."""
    return [name for name in SPACINGS if config.get(name)]


def note_uneven(
    config: Mapping[str, Any], name: str, steps: int, *, settable: bool = True
) -> str | None:
    """One line where a stock scheduler's steps end at other levels than its next ones begin at.

    It takes them for even. The kernels here go from each timestep to the next as they are.

    Args:
        name: of the sampler.
        settable: whether the remedy may be another number of steps.
    """
    most = int(config.get("num_train_timesteps", 1000))
    trailing = config.get("timestep_spacing") == "trailing"
    if name not in ("ddim", "ddpm") or not trailing or most % steps == 0:
        return None
    even = min((n for n in range(2, most + 1) if most % n == 0), key=lambda n: abs(n - steps))
    told = (
        f"{steps} trailing timesteps of {most} are not evenly apart, and a stock {name.upper()} "
        "takes them for even, so that its images are others"
    )
    return f"sampler.steps: {told}; {even} steps are even" if settable else told


def check_schedule(config: Mapping[str, Any]) -> None:
    """Refuse a noise schedule that no reverse kernel here can honour.

    Args:
        config: of any diffusers scheduler.

    Raises:
        UserError: it is of another kind of process, or changes the kernels or the levels.
    """
    _check_kind(config)
    spacings = other_spacings(config)
    if spacings:
        raise UserError(
            f"model: its scheduler spaces its noise levels by {spacings[0]}, which no kernel here "
            f"has; set {spacings[0]} to false in its {WHERE}"
        )
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in TIMESTEPS:
        raise UserError(
            f"model: timestep_spacing {spacing!r} in its {WHERE} is none of "
            f"{', '.join(TIMESTEPS)}; {TRAINED}"
        )
    interpolation = config.get("interpolation_type", "linear")
    if interpolation != "linear":
        raise UserError(
            f"model: its scheduler's noise levels are spaced {interpolation} and are not its "
            f"timesteps' own; set interpolation_type to linear in its {WHERE}"
        )
    if config.get("snr_shift_scale", 1.0) != 1.0:
        raise UserError(
            "model: its scheduler shifts the noise of its levels (snr_shift_scale), which no "
            f"schedule here does; {TRAINED}"
        )
    if config.get("thresholding"):
        raise UserError(
            "model: dynamic thresholding has no Gaussian kernel; set thresholding to false in its "
            f"{WHERE}"
        )
    if str(config.get("variance_type")).startswith("learned"):
        raise UserError(
            f"model: its scheduler has a {config['variance_type']} variance, and the kernels here "
            f"have a fixed one; set variance_type to fixed_small in its {WHERE}"
        )
    schedule = _schedule(config)
    _check_numbers(config, schedule.config)
    power = schedule.alphas_cumprod
    if not len(power) or not bool(((power >= 0) & (power < 1)).all() and (power.diff() <= 0).all()):
        raise UserError(f"model: the betas of its {WHERE} are no noise levels; {TRAINED}")
    _check_terminal_level(config)
    most = config.get("num_train_timesteps", 1000)
    if len(power) < most:
        raise UserError(
            f"model: its {WHERE} has betas for {len(power)} timesteps and num_train_timesteps is "
            f"{most}; set num_train_timesteps to {len(power)}, or {TRAINED}"
        )


def _check_numbers(config: Mapping[str, Any], converted: Mapping[str, Any]) -> None:
    """Whether timesteps are whole numbers from 0, and what is clipped is clipped to a range."""
    offset, reach = converted["steps_offset"], config.get("clip_sample_range", 1.0)
    leads = converted["timestep_spacing"] == "leading"
    if leads and not (type(offset) is int and offset >= 0):
        raise UserError(
            f"model: steps_offset {offset!r} in its {WHERE} is no number of timesteps; {TRAINED}"
        )
    if not config.get("clip_sample"):
        return
    if type(reach) not in (int, float) or not 0 < reach < math.inf:
        raise UserError(
            f"model: clip_sample_range {reach!r} in its {WHERE} is no range to clip to; {TRAINED}"
        )


def _schedule(config: Mapping[str, Any]) -> Any:
    """Its betas, in a scheduler of a class that is known."""
    try:
        return DDIMScheduler.from_config(to_convert(config))
    except Exception as error:  # diffusers raises many kinds for settings that it cannot read
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"model: its {WHERE} makes no noise schedule ({reason}); {TRAINED}"
        ) from error


def _check_kind(config: Mapping[str, Any]) -> None:
    """Whether it is a schedule of betas, for a network that predicts what can be read here."""
    prediction = config.get("prediction_type", "epsilon")
    if config.get("use_flow_sigmas") or str(prediction).startswith(("flow", "trigflow")):
        raise UserError(
            "model: its scheduler is set for flow matching, and the networks of these pipelines "
            "predict epsilon, v or x0; use the scheduler that the model was trained with"
        )
    if "sigma_data" in config or config.get("timestep_type") == "continuous":
        raise UserError(
            "model: its scheduler preconditions the network as EDM does, which is not supported; "
            "use a model with epsilon, v or sample prediction and a schedule of betas"
        )
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise UserError(
            "model: its scheduler has no betas, so that its noise levels are not those of a "
            "diffusion model here; use the scheduler that the model was trained with"
        )
    if "original_inference_steps" in config:
        raise UserError(
            "model: its scheduler is one of a model distilled to jump to the image (LCM, TCD), "
            "which has no reference score; use the model that it was distilled from, with its "
            "scheduler"
        )
    if prediction not in PARAMETERIZATIONS:
        raise UserError(
            f"model: prediction_type {prediction!r} in its {WHERE} is none of "
            f"{', '.join(PARAMETERIZATIONS)}; use the one that the model was trained with"
        )


CAP, SILENT = 0.9991, 1e-6
"""Betas that are capped end at 0.999, as a cosine's; above that, and with so little signal power
left, a schedule is one of no signal whose last beta was moved off 1."""


def _check_terminal_level(config: Mapping[str, Any]) -> None:
    """At a signal of zero the noise says nothing about x_0 (arXiv 2305.08891, section 3.1)."""
    if config.get("prediction_type", "epsilon") != "epsilon":
        return
    schedule = _schedule(config)
    least, beta = float(schedule.alphas_cumprod[-1]), float(schedule.betas[-1])
    if least == 0 or (least < SILENT and beta > CAP):
        nearly = "" if least == 0 else f"all but (a signal power of {least:.0e}) "
        raise UserError(
            f"model: its schedule ends at {nearly}zero terminal SNR, where a prediction of epsilon "
            f"says nothing about the image; {_without_silence(config)}, or use a model with "
            "v_prediction"
        )


def _without_silence(config: Mapping[str, Any]) -> str:
    """What to change of the setting that makes the schedule end so."""
    if config.get("rescale_betas_zero_snr"):
        return f"set rescale_betas_zero_snr to false in its {WHERE}"
    name = "beta_end" if config.get("trained_betas") is None else "trained_betas"
    what = "what the model was trained with, which ends at 0.999 or less"
    return f"set {name} in its {WHERE} to {what}"
