"""What the functions of `nablaflow.api` are called with, checked as a command's options are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from nablaflow.config.settings import Count, Positive, Seed
from nablaflow.config.values import check_text
from nablaflow.errors import UserError, one_line, show
from nablaflow.places import at_home
from nablaflow.settings import Settings, explain


class SampleArguments(Settings):
    """Of `nablaflow.sample`."""

    n: Count
    seed: Seed
    checkpoint: str | None
    strength: float | None = Field(ge=0)
    sampler: str | None
    height: Count | None
    width: Count | None


class EvaluateArguments(Settings):
    """Of `nablaflow.evaluate`."""

    n: Count | None
    features: str
    metrics: list[str] | None
    strengths: list[Annotated[float, Field(ge=0)]]


class ExportArguments(Settings):
    """Of `nablaflow.Run.export`."""

    form: str
    dtype: str
    checkpoint: str
    strength: float = Field(ge=0)


class CompareArguments(Settings):
    """Of `nablaflow.compare`."""

    methods: list[str]
    reward: list[str]
    seeds: Count | None
    minutes: Positive | None
    beta: Positive | None
    n: Count | None
    held_out: str | None
    metrics: list[str]
    calibrate: bool


class ProblemArguments(Settings):
    """Of `nablaflow.exact.Problem`, whose own checks say how large they may be."""

    beta: float = Field(allow_inf_nan=True)
    steps: int
    name: str


class LabArguments(Settings):
    """Of `nablaflow.exact.evaluate`, whose own checks say how many are enough."""

    updates: int
    batch: int
    n: int
    seed: Seed


Arguments = TypeVar("Arguments", bound=Settings)


def checked(kind: type[Arguments], **values: Any) -> Arguments:
    """The arguments as plain values.

    Raises:
        UserError: one line that names the argument, what is wrong, the remedy.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(one_line(explain(error, kind, ()))) from None


def names(given: Any) -> Any:
    """One text or several as a list; what is neither is for the check."""
    if isinstance(given, str):
        return [given]
    several = is_series(given) and not isinstance(given, bytes | Mapping)
    return list(given) if several else given


def is_series(given: Any) -> bool:
    """Whether it can be gone through; an array of one number says so and cannot."""
    return isinstance(given, Iterable) and getattr(given, "ndim", 1) != 0


def texts(prompts: Any) -> list[str]:
    """Prompts themselves: one or several; none are the default.

    Raises:
        UserError: they are something else.
    """
    found = names(() if prompts is None else prompts)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UserError(f"prompts: must be a text or a list of texts, not {show(prompts)}")
    for text in found:
        check_text("prompts", text)
    return found


def folder_of_run(value: Any) -> Path:
    """The folder of a run that was named by it.

    Raises:
        UserError: it is no path.
    """
    return place("run", value, "a run or the folder of one")


def place(name: str, value: Any, kind: str = "a path") -> Path:
    """An argument that is a path.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name}: must be {kind}, not {show(value)}")
    return at_home(value)
