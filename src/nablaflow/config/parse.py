"""From a nested mapping to a configuration, or to one line that names what is wrong in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nablaflow.config.named_method import FindMethod, find_none
from nablaflow.config.parse_method import parse_method
from nablaflow.config.recipe import Config
from nablaflow.config.suggestions import suggest
from nablaflow.config.values import check_path, check_scalar, refusal
from nablaflow.settings import dotted, explain, plain

Group = TypeVar("Group", bound=BaseModel)

# Settings whose text is a path; a list of prompts is none.
PATHS = {("model",), ("output_dir",), ("prompts",), ("evaluation", "prompts"), ("guard", "prompts")}
PATHS |= {("model_lora",), ("adapter", "start")}


def parse_config(values: Mapping[str, Any], find: FindMethod = find_none) -> Config:
    """The configuration that a nested mapping describes.

    Args:
        find: finds the class of a method of the user's own; by default there is none.

    Raises:
        UserError: one line: the dotted key, what is wrong, the remedy.
    """
    unknown = [str(key) for key in values if key not in Config.model_fields]
    if unknown:
        raise refusal(f"{unknown[0]}: unknown key; {suggest(unknown[0], Config)}")
    settings = plain(values)
    _check_values(settings)
    if settings.get("method") is not None:
        settings["method"] = parse_method(settings["method"], find)
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise refusal(explain(error, Config, (), suggest)) from None
    # What is saved says what there is; flow settings that a recipe shares among methods may stay.
    return config if config.method.uses_flow else config.model_copy(update={"flow": None})


def _check_values(value: Any, place: tuple[int | str, ...] = ()) -> None:
    """No number or text of which something would go wrong far from here."""
    try:
        check_scalar(value)
        if place in PATHS:
            check_path(value)
        if place in PATHS and place[-1] != "prompts" and value == "":
            raise ValueError("is empty; give a path")
    except ValueError as error:
        raise refusal(f"{dotted(place)}: {error}") from None
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, BaseModel):  # a group that was made by itself
        inner = value
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, part in inner:
        _check_values(part, (*place, key))


def parse_group(kind: type[Group], values: Mapping[str, Any], place: str) -> Group:
    """One group of settings by itself.

    Raises:
        UserError: one line: the dotted key, what is wrong, the remedy.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise refusal(explain(error, kind, (place,), suggest)) from None
