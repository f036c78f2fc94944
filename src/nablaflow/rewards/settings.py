"""Rewards with settings, as a recipe gives them: ``{name: aesthetic, batch: 8, dtype: bf16}``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from nablaflow.addresses import masked
from nablaflow.errors import UserError, nearest
from nablaflow.rewards.contract import NamedReward
from nablaflow.settings import Settings

Load = Callable[[Any], NamedReward]
"""From a spec to its reward; given to those that are made of others."""


class RewardSettings(Settings):
    """Base of every reward with settings; a class of it is a reward's line in the list."""

    @abstractmethod
    def build(self, name: str, load: Load) -> NamedReward:
        """The reward, its weights not read yet.

        Args:
            name: what messages and logs call it.
            load: finds the rewards that it is made of.

        Raises:
            UserError: something that it needs is not there.
        """


def parse_settings(
    name: str, kind: type[RewardSettings], values: Mapping[str, Any]
) -> RewardSettings:
    """The settings of the reward ``name``, checked.

    Raises:
        UserError: one line that names the key, what is wrong and the remedy.
    """
    known = list(kind.model_fields)
    for key in values:
        if key not in known:
            raise UserError(f"reward.{key}: unknown key for {name}; {nearest(str(key), known)}")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_explain(name, kind, error)) from None


def _explain(name: str, kind: type[RewardSettings], error: ValidationError) -> str:
    """The first of pydantic's errors, on one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"][:1]))
    if first["type"] == "missing":
        return f"reward.{key}: missing for {name} ({kind.model_fields[key].description})"
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        shown = " ".join(repr(masked(first["input"])).split())[:60]
        problem = f"{problem.replace('Input should be', 'must be')}, not {shown}"
    return f"reward.{key}: {problem}" if key else f"reward: {problem}"
