"""A method as a recipe has it: a name, and the settings of the class registered under it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from nablaflow import methods
from nablaflow.errors import UserError
from nablaflow.methods import Method
from nablaflow.methods.own import own_name


def registered_methods() -> Mapping[str, type[Method]]:
    """Name to class."""
    return methods.METHODS


FindMethod = Callable[[str], type[Method]]
"""From ``path/to/file.py:Class`` to the class; running the file is only for whoever may."""


def find_none(spec: str) -> type[Method]:
    """For settings that are data: no file is run for them."""
    raise UserError(f"method.name: {spec!r} is code, which is not run here; name a method")


def method_settings(method: Method) -> dict[str, Any]:
    """A method as plain data: its name, then its settings.

    Raises:
        UserError: it is no method, or its class has no name.
    """
    if not isinstance(method, Method):
        raise UserError(f"method: {type(method).__name__} is none; derive it from nablaflow.Method")
    name = own_name(type(method)) if is_own(method) else method.name
    return {"name": name, **method.model_dump(mode="json", exclude={"name"})}


def is_own(value: BaseModel) -> bool:
    """Whether it is a method of the user's own, of a class that is not in the list."""
    return isinstance(value, Method) and type(value) not in registered_methods().values()
