"""Which diffusers scheduler takes a sampler's steps, and what ``from_config`` has to be told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from nablaflow.diffusion.samplers import FIRST_ORDER
from nablaflow.diffusion.schedule import to_convert

STOCK: dict[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "sde-dpmsolver++": DPMSolverMultistepScheduler,
}
"""By the sampler's name; the others' are those of their models."""


class InScript(str):
    """What a script says for a value that would be long in figures."""

    __slots__ = ()
    __repr__ = str.__str__


def told_to(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without which ``from_config`` makes of a scheduler's other steps than the sampler's.

    See `to_convert`: it drops what a folder, or its pipeline, has left to another class's defaults.

    Args:
        name: of the sampler, in `STOCK`.
        config: of the model's own scheduler.
    """
    kind, clips = STOCK[name], bool(config.get("clip_sample"))
    names = list(inspect.signature(kind).parameters)
    own: dict[str, Any] = FIRST_ORDER if name == "sde-dpmsolver++" else {"clip_sample": clips}
    wanted = kind.from_config(to_convert(config), **own).config
    told: dict[str, Any] = {}
    if config.get("trained_betas") is None and wanted["trained_betas"] is not None:
        told["trained_betas"] = InScript("pipeline.scheduler.betas.tolist()")
    betas = {"trained_betas": wanted["trained_betas"]} if told else {}
    given = kind.from_config(config, **betas).config
    left = {*told, *(() if clips else ("clip_sample_range",))}
    return told | {n: wanted[n] for n in names if n not in left and wanted[n] != given[n]}
