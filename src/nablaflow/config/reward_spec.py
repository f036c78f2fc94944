"""How a recipe names a reward: one field of several groups of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from nablaflow.config.values import is_number
from nablaflow.errors import show


def check_reward(value: Any) -> str | dict[str, Any]:
    """A name, ``file.py:function``, one with settings, or a mapping of those to finite weights.

    The settings themselves are checked by `nablaflow.rewards.load`, before any weights are read.
    """
    if isinstance(value, str) and value.strip():
        return value.strip()
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"must be a name, path/to/file.py:function or a mapping of those to weights, "
            f"not {show(value)}"
        )
    if isinstance(value.get("name"), str):
        return dict(value)
    for name, term in value.items():
        weight = term.get("weight", 1.0) if isinstance(term, Mapping) else term
        if not is_number(weight):
            raise ValueError(f"the weight of {name} must be a finite number, not {show(weight)}")
    return {str(k): dict(v) if isinstance(v, Mapping) else float(v) for k, v in value.items()}


RewardSpec = Annotated[str | dict[str, Any], BeforeValidator(check_reward)]
