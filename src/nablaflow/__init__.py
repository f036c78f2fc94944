"""Align diffusion image models with a reward; keep their diversity and their prior.

import nablaflow as nf

run = nf.align(
    model="path/or/hub-id",
    reward="brightness",
    prompts=["a photo of a cat"],
    method=nf.ResidualNablaDB(beta=100.0),
    steps=200,
    output_dir="runs/x",
)
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nablaflow import exact, nano
    from nablaflow.evaluation.beta import choose_beta
    from nablaflow.methods import (
        AdjointMatching,
        Method,
        NablaDB,
        NablaTD,
        ResidualNablaDB,
        TerminalMatching,
        ValueMatching,
    )
    from nablaflow.runs.finish import Run
    from nablaflow.typing import Reward

__version__ = "0.1.0"
__all__ = [
    "AdjointMatching",
    "NablaDB",
    "NablaTD",
    "ResidualNablaDB",
    "TerminalMatching",
    "ValueMatching",
    "align",
    "choose_beta",
    "exact",
    "nano",
]

# Loaded on first use, so that the command line answers --help at once.
_METHODS = {name for name in __all__ if name not in ("align", "choose_beta", "exact", "nano")}


def __getattr__(name: str) -> Any:
    if name in ("exact", "nano"):
        return importlib.import_module(f"nablaflow.{name}")
    if name == "choose_beta":
        return importlib.import_module("nablaflow.evaluation.beta").choose_beta
    if name in _METHODS:
        return getattr(importlib.import_module("nablaflow.methods"), name)
    raise AttributeError(f"module 'nablaflow' has no attribute {name!r}")


def align(
    *,
    model: str = "nano",
    reward: str | dict[str, Any] | Reward,
    prompts: Sequence[str] | str | dict[str, str] | None,
    method: Method | str | dict[str, Any],
    output_dir: str | Path,
    steps: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Align a model with a reward and write a run folder.

    Args:
        model: ``nano``, a diffusers folder, or a hub id.
        reward: name, ``file.py:function``, sum of those, a mapping with ``name`` and settings, or
            a callable ``(images, prompts)``.
        prompts: a list, a file, a set by name, or a mapping of source, column and split; None for
            an unconditional model.
        method: an object such as ``ResidualNablaDB(beta=100.0)``, a name, or a mapping.
        steps: optimizer updates; 200 unless ``training`` has them.
        settings: groups as in a recipe, such as ``sampler={"steps": 50}``; what is left out has
            the defaults of `nablaflow.config.defaults`.

    Raises:
        UserError: a mistake in any of these.
    """
    from nablaflow.config.defaults import DEFAULTS
    from nablaflow.config.overrides import merge
    from nablaflow.config.recipe import parse_config
    from nablaflow.errors import UserError
    from nablaflow.prompts.source import absolute
    from nablaflow.rewards import CALLABLE, load
    from nablaflow.runs.align import run

    given = load(reward)
    texts = prompts if prompts is None or isinstance(prompts, str | dict) else list(prompts)
    values = {
        "model": model,
        "reward": reward if isinstance(reward, str | dict) else f"{CALLABLE}{given.name}",
        "prompts": absolute(texts, Path()),
        "method": method,
        "output_dir": str(output_dir),
    }
    if steps is not None:
        if "updates" in settings.get("training", {}):
            raise UserError("steps: training has updates as well; give one of the two")
        values["training"] = {"updates": steps}
    config = parse_config(merge(merge(DEFAULTS, values), settings))
    return run(config, resume=resume, overwrite=overwrite, reward=given)
