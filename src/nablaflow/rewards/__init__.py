"""What a model is aligned with: the list of rewards, and how one is found by name or by path.

A reward is any callable from images (batch, 3, h, w) in [0, 1] and one prompt each to (batch,)
scores. To add one, write its file here and its line in ``REWARDS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nablaflow.errors import UserError, nearest
from nablaflow.rewards.brightness import brightness
from nablaflow.rewards.colorfulness import colorfulness
from nablaflow.rewards.combine import WeightedSum, parse, weighted_sum
from nablaflow.rewards.contract import NamedReward, check_finite, named, score_and_gradient
from nablaflow.rewards.contrast import contrast
from nablaflow.rewards.custom import is_custom, is_fitted, load_function
from nablaflow.rewards.fitted import Fitted
from nablaflow.rewards.jpeg_size import jpeg_compressibility, jpeg_incompressibility
from nablaflow.rewards.probe import RewardProbe, probe, require_gradient
from nablaflow.rewards.settings import parse_settings
from nablaflow.rewards.symmetry import symmetry
from nablaflow.rewards.warmth import warmth
from nablaflow.typing import Reward

__all__ = [
    "CALLABLE",
    "REWARDS",
    "NamedReward",
    "RewardProbe",
    "WeightedSum",
    "check_finite",
    "load",
    "probe",
    "require_gradient",
    "score_and_gradient",
]

CALLABLE = "python:"
"""Begins the name that a saved configuration has for a function it cannot name otherwise."""

REWARDS: dict[str, Reward] = {
    "brightness": brightness,
    "colorfulness": colorfulness,
    "contrast": contrast,
    "jpeg_compressibility": jpeg_compressibility,
    "jpeg_incompressibility": jpeg_incompressibility,
    "symmetry": symmetry,
    "warmth": warmth,
}


def load(spec: str | Mapping[str, Any] | Reward) -> NamedReward:
    """The reward that a spec means.

    Args:
        spec: a name of ``REWARDS``, ``path/to/file.py:function``, the file of a fitted
            reward, a mapping with such a ``name`` and settings, a sum of those such as
            ``warmth + 0.5*symmetry``, the same sum as a mapping of spec to weight, or a callable.

    Raises:
        UserError: there is no such reward, or a sum or a file cannot be read.
    """
    if isinstance(spec, Mapping):
        return _configured(spec) if isinstance(spec.get("name"), str) else _named_sum(spec)
    if not isinstance(spec, str):
        return named(spec)
    weights = parse(spec)
    if list(weights.values()) == [1.0]:
        return _find(*weights)
    return _named_sum(weights)


def _named_sum(weights: Mapping[str, Any]) -> NamedReward:
    total = weighted_sum(weights, _find)
    return NamedReward(total.name, total)


def _configured(values: Mapping[str, Any]) -> NamedReward:
    """A reward with settings: a mapping with its name among them."""
    name, settings = values["name"], {k: v for k, v in values.items() if k != "name"}
    if is_fitted(name):
        return parse_settings(name, Fitted, settings).build(name, load)
    if settings:
        raise UserError(f"reward.{next(iter(settings))}: {name} has no settings; leave it out")
    return _find(name)


def _find(spec: str) -> NamedReward:
    """One reward, by its name or its path."""
    if spec.startswith(CALLABLE):
        raise UserError(
            f"reward {spec!r} was a function handed to nablaflow.align: put it in a file and give "
            "reward=path/to/file.py:function"
        )
    if is_custom(spec):
        return NamedReward(spec, load_function(spec))
    if is_fitted(spec):
        return _configured({"name": spec})
    if spec not in REWARDS:
        raise UserError(
            f"unknown reward {spec!r}: {nearest(spec, REWARDS)} "
            "(your own goes in as path/to/file.py:function)"
        )
    return NamedReward(spec, REWARDS[spec])
