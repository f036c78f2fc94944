"""Values that several groups of settings hold, and how a wrong one is shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator


def check_reward(value: Any) -> str | dict[str, float]:
    """A name, ``file.py:function``, or a mapping of those to finite weights."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"must be a name, path/to/file.py:function or a mapping of those to weights, "
            f"not {show(value)}"
        )
    for name, weight in value.items():
        if not is_number(weight):
            raise ValueError(f"the weight of {name} must be a finite number, not {show(weight)}")
    return {str(name): float(weight) for name, weight in value.items()}


def check_prompts(value: Any) -> list[str] | str:
    """A list of prompts or the path of a file; the file itself is read by ``load_prompts``."""
    if isinstance(value, Path) or (isinstance(value, str) and value.strip()):
        return str(value)
    if not isinstance(value, list | tuple) or not all(isinstance(p, str) for p in value):
        raise ValueError(
            f"must be a list of texts or the path of a text file, not {show(value)}; "
            f"put quotes around a prompt that YAML reads otherwise"
        )
    if not value:
        raise ValueError("the list is empty; give at least one prompt")
    return list(value)


RewardSpec = Annotated[str | dict[str, float], BeforeValidator(check_reward)]
PromptsSpec = Annotated[list[str] | str, BeforeValidator(check_prompts)]


def is_number(value: Any) -> bool:
    """Whether a float can hold it: no truth value, no NaN, no infinity, no integer beyond."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def show(value: Any) -> str:
    """A value as the user wrote it, short enough for one line."""
    text = "null" if value is None else one_line(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(text: str) -> str:
    return " ".join(text.split())
