"""What the functions of this room are given: a model, prompts, a run."""

from __future__ import annotations

import os
from collections.abc import Iterable, KeysView, Mapping, Set
from pathlib import Path
from typing import Any

from nablaflow.config.arguments import folder_of_run, is_series
from nablaflow.errors import UserError
from nablaflow.methods import Method
from nablaflow.models import AnyPipeline, LivePipeline, hand_over
from nablaflow.places import at_home
from nablaflow.rewards import CALLABLE, NamedReward, named
from nablaflow.runs.run import Run

Model = str | Path | AnyPipeline
"""``nano``, ``flow``, a diffusers folder, a hub id, or a pipeline that is in memory."""
Prompts = Iterable[str] | str | Path | Mapping[str, str] | None


def model_of(model: Model) -> tuple[str, LivePipeline | None]:
    """Its name, and the pipeline if it is one."""
    if isinstance(model, str):
        return model, None
    if isinstance(model, Path):
        return str(at_home(model).absolute()), None
    live = hand_over(model)
    return live.name, live


def reward_of(reward: Any) -> Any:
    """A reward as a recipe has it: its functions by their names alone."""
    if isinstance(reward, Mapping):
        return {key: reward_of(part) for key, part in reward.items()}
    if isinstance(reward, list | tuple):
        return [reward_of(part) for part in reward]
    return f"{CALLABLE}{named(reward).name}" if callable(reward) else reward


def has_function(reward: Any) -> bool:
    """Whether it is a function, or one is part of it, of which no recipe can tell."""
    if isinstance(reward, Mapping):
        return any(map(has_function, reward.values()))
    if isinstance(reward, list | tuple):
        return any(map(has_function, reward))
    return callable(reward)


def text_of(path: Any) -> Any:
    """A path as text; what is none is for the settings' own check."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def prompts_of(prompts: Any) -> Any:
    """Prompts as a recipe has them; what are none are for the settings' own check."""
    if isinstance(prompts, Set) and not isinstance(prompts, KeysView):  # a mapping's have one
        raise UserError(
            "prompts: a set has another order in every session, and so would the run; give a list"
        )
    if isinstance(prompts, str | bytes | Mapping) or not is_series(prompts):
        return text_of(prompts)
    return list(prompts)


def parts_of(
    of: Run | str | Path,
) -> tuple[Path, NamedReward | None, LivePipeline | None, type[Method] | None]:
    """The folder; and of what was handed over in this session reward, pipeline, method.

    Raises:
        UserError: it is none, or that of a run is not there any more.
    """
    if isinstance(of, Run):
        of.check_is_there()
        return of.folder, of.reward, of.live, of.method
    return folder_of_run(of), None, None, None


def those_given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
