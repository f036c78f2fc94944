"""Where prompts come from, as a setting: a list, a file, a set by name, a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from nablaflow.errors import nearest
from nablaflow.places import at_home

HUB = "hub:"
SETS = ("simple-animals", "drawbench", "hpdv2-photo", "hpdv2-paintings")
"""The sets that the papers train on, by name; a file of such a name is written ./drawbench."""
FUNCTION = "trl:"
"""Begins the path of a file and the name in it of a function () -> (prompt, metadata), as TRL's."""
DRAWS, MOST_DRAWS = 256, 100_000
"""Of such a function: where no number is named, and at most."""
KEYS = ("source", "column", "split", "count")


def check_source(value: Any) -> list[str] | str | dict[str, Any]:
    """A source as a recipe may have it, its path as text.

    Raises:
        ValueError: it is none; says what is wrong without the field's name.
    """
    if isinstance(value, str) and _is_address(value):
        raise ValueError("an address is no file; download it, or give hub:owner/name")
    if isinstance(value, Path) or (isinstance(value, str) and value.strip()):
        _refuse_function(str(value))
        return str(value)
    if isinstance(value, Mapping):
        return _check_mapping(value)
    if callable(value):
        raise ValueError("a function goes in by its place, {source: trl:path/to/file.py:function}")
    if not isinstance(value, list | tuple) or not all(isinstance(p, str) for p in value):
        shown = "null" if value is None else " ".join(repr(value).split())
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise ValueError(
            f"must be a list of texts or the path of a text file, not {shown}; "
            f"put quotes around a prompt that YAML reads otherwise"
        )
    if not value:
        raise ValueError("the list is empty; give at least one prompt")
    return list(value)


def _check_mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    for key, inner in value.items():
        if key not in KEYS:
            raise ValueError(f"unknown key {key}; {nearest(str(key), KEYS)}")
        if key == "count":
            if type(inner) is not int or not 1 <= inner <= MOST_DRAWS:
                raise ValueError(f"count must be a whole number from 1 to {MOST_DRAWS}")
        elif not isinstance(inner, str) or not inner.strip():
            raise ValueError(f"{key} must be a text, such as {key}: prompt")
    if "source" not in value:
        raise ValueError("source is missing; give a file or hub:owner/name beside the column")
    _refuse_function(value["source"])
    return {str(key): inner for key, inner in value.items()}


def _refuse_function(source: str) -> None:
    if re.search(r"\.py:\w+$", source) and not source.startswith(FUNCTION):
        name = Path(source).name  # which `absolute` may have given a folder
        raise ValueError(f"{name} is a function's place; write {FUNCTION} before its path")


PromptSource = Annotated[list[str] | str | dict[str, Any], BeforeValidator(check_source)]
"""Checked for its form alone; what it names is read by ``prompts.load_prompts``."""


def _is_address(value: str) -> bool:
    return value.strip().lower().startswith(("http://", "https://"))


def absolute(value: Any, folder: Path) -> Any:
    """A source whose relative path, if it is one, starts at ``folder`` no longer."""
    if isinstance(value, Mapping) and "source" in value:
        return {**value, "source": absolute(value["source"], folder)}
    if not isinstance(value, str) or not value.strip():
        return value
    if value.startswith(HUB) or value in SETS or _is_address(value):
        return value
    if value.startswith(FUNCTION):
        return FUNCTION + str((folder / at_home(value.removeprefix(FUNCTION))).absolute())
    return str((folder / at_home(value)).absolute())
