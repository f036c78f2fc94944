"""What a model is aligned with: the list of rewards, and how one is found by name or by path.

A reward is any callable from images (batch, 3, h, w) in [0, 1] and one prompt each to (batch,)
scores. To add one, write its file here and its line in ``REWARDS``, or, if it has settings, in
``CONFIGURABLE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nablaflow.addresses import masked_url
from nablaflow.errors import UserError, nearest
from nablaflow.nano.shown import shape_shown
from nablaflow.nano.taste import preference_rule
from nablaflow.rewards.aesthetic import Aesthetic
from nablaflow.rewards.cap import Cap
from nablaflow.rewards.clip_score import ClipScore
from nablaflow.rewards.combine import WeightedSum, parse, weighted_sum
from nablaflow.rewards.contract import (
    Components,
    NamedReward,
    check_finite,
    goes_ahead,
    named,
    score_and_gradient,
    walk,
)
from nablaflow.rewards.custom import is_custom, is_fitted, load_function
from nablaflow.rewards.fitted import Fitted
from nablaflow.rewards.hpsv2 import HPSv2
from nablaflow.rewards.image_reward import ImageReward
from nablaflow.rewards.jpeg_size import jpeg_compressibility, jpeg_incompressibility
from nablaflow.rewards.minimum import Minimum
from nablaflow.rewards.normalized import Normalized, memory, observe, recall
from nablaflow.rewards.pickscore import PickScore
from nablaflow.rewards.pixels import brightness, colorfulness, contrast, symmetry, warmth
from nablaflow.rewards.preference import Preference
from nablaflow.rewards.probe import RewardProbe, probe, require_gradient
from nablaflow.rewards.remote import Remote
from nablaflow.rewards.settings import RewardSettings, parse_settings
from nablaflow.rewards.trl import TrlReward, is_trl, load_trl, tell_metadata
from nablaflow.settings import plain
from nablaflow.typing import Reward

__all__ = [
    "CALLABLE",
    "CONFIGURABLE",
    "REWARDS",
    "SCORED",
    "Components",
    "NamedReward",
    "RewardProbe",
    "TrlReward",
    "WeightedSum",
    "check_finite",
    "goes_ahead",
    "load",
    "memory",
    "named",
    "observe",
    "probe",
    "recall",
    "require_gradient",
    "score_and_gradient",
    "tell_metadata",
]

CALLABLE = "python:"
"""Begins the name that a saved configuration has for a function it cannot name otherwise."""

REWARDS: dict[str, Reward] = {
    "brightness": brightness,
    "colorfulness": colorfulness,
    "contrast": contrast,
    "jpeg_compressibility": jpeg_compressibility,
    "jpeg_incompressibility": jpeg_incompressibility,
    "preference_rule": preference_rule,
    "shape_shown": shape_shown,
    "symmetry": symmetry,
    "warmth": warmth,
}


CONFIGURABLE: dict[str, type[RewardSettings]] = {
    "aesthetic": Aesthetic,
    "cap": Cap,
    "clip_score": ClipScore,
    "hpsv2": HPSv2,
    "image_reward": ImageReward,
    "minimum": Minimum,
    "normalized": Normalized,
    "pickscore": PickScore,
    "preference": Preference,
    "remote": Remote,
}
"""Rewards with settings; those with weights read them when they first score."""

SCORED = (
    "brightness",
    "colorfulness",
    "contrast",
    "preference",
    "preference_rule",
    "symmetry",
    "warmth",
)
"""Those whose scores of the embedded models' banks ship: of no other package's making, as a JPEG's
size is, and of no prompt."""


def load(spec: str | Mapping[str, Any] | Reward) -> NamedReward:
    """The reward that a spec means; weights of learned ones are not read yet.

    Args:
        spec: a name of ``REWARDS`` or ``CONFIGURABLE``, ``path/to/file.py:function``, the same
            after ``trl:`` for a function with TRL's signature, the file of a fitted reward, a sum
            of those such as ``warmth + 0.5*symmetry``, a mapping with ``name`` and settings, a sum
            as a mapping of spec to weight or of a name to settings and ``weight``, or a callable.

    Raises:
        UserError: there is no such reward, or a sum, a setting or a file cannot be read.
    """
    reward = _load(plain(spec))
    _refuse_namesakes(reward)
    return reward


def _load(spec: Any) -> NamedReward:
    if isinstance(spec, Mapping):
        return _configured(spec) if isinstance(spec.get("name"), str) else _named_sum(spec)
    if not isinstance(spec, str):
        return named(spec)
    weights = parse(spec)
    if list(weights.values()) == [1.0]:
        return _find(*weights)
    return _named_sum(weights)


def _named_sum(terms: Mapping[Any, Any]) -> NamedReward:
    """A sum; a term's value is its weight, or its settings with ``weight`` among them."""
    for key, value in terms.items():
        name = value.get("name", key) if isinstance(value, Mapping) else key
        if not isinstance(key, str) or not isinstance(name, str):
            where = "reward" if name is key else f"reward.{key}.name"
            raise UserError(f"{where}: {name!r} is no name; give one, or path/to/file.py:function")
    weights = {
        key: value.get("weight", 1.0) if isinstance(value, Mapping) else value
        for key, value in terms.items()
    }
    total = weighted_sum(weights, lambda key: _term(key, terms[key]))
    if [weight for weight, _ in total.terms] == [1.0]:  # else it were a namesake of its only term
        return total.terms[0][1]
    return NamedReward(total.name, total)


def _term(key: str, value: Any) -> NamedReward:
    if not isinstance(value, Mapping):
        return _find(key)
    settings = {inner: v for inner, v in value.items() if inner != "weight"}
    # With a name among the settings, the key is a label of the user's own.
    return NamedReward(key, _configured({"name": key, **settings}).function)


def _configured(values: Mapping[str, Any]) -> NamedReward:
    name, settings = values["name"], {k: v for k, v in values.items() if k != "name"}
    kind = Fitted if is_fitted(name) else CONFIGURABLE.get(name)
    if kind is not None:
        return parse_settings(name, kind, settings).build(name, _load)
    found = _find(name)
    if settings:
        raise UserError(f"reward.{next(iter(settings))}: {name} has no settings; leave it out")
    return found


def _find(spec: str) -> NamedReward:
    """One reward, by its name or its path."""
    if max(map(len, spec.split("/"))) > 255 or len(spec) > 4096:
        raise UserError(f"reward {spec[:40]!r}… is too long for a name or a path")
    if spec.startswith(CALLABLE):
        raise UserError(
            f"reward {spec!r} was a function handed to nablaflow.align: put it in a file and give "
            "reward=path/to/file.py:function"
        )
    if spec.lower().startswith(("http://", "https://")):
        raise UserError(
            f"reward: {masked_url(spec)} is an address; a judge there is "
            "reward={name: remote, url: …}"
        )
    if is_trl(spec):
        return load_trl(spec)
    if is_custom(spec):
        return NamedReward(spec, load_function(spec))
    if spec in CONFIGURABLE or is_fitted(spec):
        return _configured({"name": spec})
    if spec not in REWARDS:
        raise UserError(
            f"unknown reward {spec!r}: {nearest(spec, [*REWARDS, *CONFIGURABLE])} "
            "(your own goes in as path/to/file.py:function)"
        )
    return NamedReward(spec, REWARDS[spec])


def _refuse_namesakes(reward: NamedReward) -> None:
    """What is logged and remembered goes by name; one reward twice is no harm."""
    seen: dict[str, Reward] = {}
    for part in walk(reward):
        if seen.setdefault(part.name, part.function) != part.function:
            raise UserError(
                f"two different rewards are called {part.name!r}: give them keys of their own, as "
                "in reward: {first: {name: …, weight: 1}, second: {name: …, weight: 1}}"
            )
