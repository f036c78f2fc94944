"""Methods of the user's own: an object in Python, or ``path/to/file.py:Class`` by name."""

from __future__ import annotations

import inspect

from nablaflow.errors import UserError
from nablaflow.methods.contract import Method
from nablaflow.rewards import CALLABLE
from nablaflow.rewards.custom import load_object, place_of


def load_method(spec: str) -> type[Method]:
    """Import a Python file, which runs it, and take a method's class out of it.

    Args:
        spec: ``path/to/file.py:Class``; the path is relative to the working directory.

    Raises:
        UserError: no such file or class, or it is not whole.
    """
    if spec.startswith(CALLABLE):
        raise UserError(
            f"method {spec!r} was an object handed to nablaflow.align: put its class in a file and "
            "give method=path/to/file.py:Class"
        )
    found = load_object(spec, "method", "class")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {spec!r}: must be a class that derives from nablaflow.Method")
    check_whole(found)
    return found


def check_whole(kind: type[Method]) -> None:
    """Refuse a class that has no name, or leaves a part of the contract open.

    Raises:
        UserError: one line on what is missing.
    """
    for part, example in (("name", '"my-method"'), ("needs_reward_gradient", "True")):
        if not hasattr(kind, part):
            raise UserError(
                f"method: {kind.__name__} has no {part}; write {part}: ClassVar = {example} in it"
            )
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise UserError(f"method: {kind.__name__} has no {missing}; define it in the class")


def own_name(kind: type[Method]) -> str:
    """What a configuration calls such a class: its place, or that it was handed over."""
    check_whole(kind)
    return place_of(kind) or f"{CALLABLE}{kind.name}"
