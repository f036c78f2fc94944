"""A sampler for a model as it is, whatever scheduler its folder has.

Nothing is trained, so that other noise levels or other steps change the image and no claim: what
differs from the stock pipeline is said, and only what has no sampler at all is refused.
"""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from nablaflow.diffusion.flow_schedule import SPACINGS
from nablaflow.diffusion.schedule import other_spacings

OF_DDIM, OF_EULER = ("DDIM", "DDPM"), ("FlowMatchEuler",)
"""How the names of the schedulers begin whose steps ddim and, of flow matching, euler takes."""
LEVELS = (
    *("num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift"),
    *("base_image_seq_len", "max_image_seq_len", "shift_terminal", "time_shift_type"),
    "invert_sigmas",
)
"""What says where the noise levels of flow matching are, and from which side they count."""
LEFT_OUT = {
    **dict.fromkeys(SPACINGS, "its noise levels are evenly spaced here, but for their shift"),
    "stochastic_sampling": "its steps add no noise here",
}
"""What a scheduler of flow matching may do besides, and what is done in its place."""


def fitting_sampler(
    pipeline: Any, of_family: str | None, asked: str | None
) -> tuple[str, list[str]]:
    """Give a pipeline's scheduler noise levels that samplers have, and find the sampler.

    Args:
        pipeline: changed, if need be.
        of_family: the family's sampler, where it has one for all its schedulers: flow matching.
        asked: the one that the user asks for, if any.

    Returns:
        Its name, and lines about what differs from the stock pipeline.
    """
    own = type(pipeline.scheduler).__name__
    if of_family is not None:
        told = _with_flow_levels(pipeline)
        name, taken = asked or of_family, own.startswith(OF_EULER)
    else:
        told = _with_even_levels(pipeline.scheduler)
        name, taken = asked or "ddim", own.startswith(OF_DDIM)
        if not asked and pipeline.scheduler.config.get("timestep_spacing") == "linspace":
            line = "sampled with sde-dpmsolver++, since ddim does not fit timesteps spaced linspace"
            return "sde-dpmsolver++", [*told, line]
    if not asked and not taken:
        told.append(f"sampled with {name}, since its own scheduler, {own}, is no sampler here")
    return name, told


def _with_even_levels(scheduler: Any) -> list[str]:
    """Of betas: at its timesteps, as they are spaced."""
    spacings = other_spacings(scheduler.config)
    if not spacings:
        return []
    scheduler.register_to_config(**dict.fromkeys(spacings, False))
    return [f"the scheduler's {spacings[0]} is left out; its timesteps are evenly spaced here"]


def _with_flow_levels(pipeline: Any) -> list[str]:
    """Of flow matching: Euler's, with the shift of a solver or of a distilled model's scheduler."""
    config = dict(pipeline.scheduler.config)
    other = [name for name in LEFT_OUT if config.get(name)]
    is_solver = config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
    if is_solver:
        config["shift"] = config.get("flow_shift", 1.0)
    if is_solver or "upscale_mode" in config:
        plain = FlowMatchEulerDiscreteScheduler()
        plain.register_to_config(**{name: config[name] for name in LEVELS if name in config})
        pipeline.register_modules(scheduler=plain)
    else:
        pipeline.scheduler.register_to_config(**dict.fromkeys(other, False))
    return [f"the scheduler's {name} is left out; {LEFT_OUT[name]}" for name in other]
