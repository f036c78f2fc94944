"""What checks the package's annotations while tests run: beartype, once for each call.

jaxtyping's own decorator binds the arguments of every call and lets beartype look at them twice,
which is a third of a short training's time. This one stands in its place in jaxtyping's import
hook: a function whose annotations name shapes has its arguments and its result looked at with one
set of sizes, and any other is beartype's alone.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, get_args

from jaxtyping import AbstractArray, jaxtyped

Check = Callable[[Any], Any]


def checked(decorated: Any = None, *, typechecker: Check) -> Any:
    """`jaxtyping.jaxtyped` as its import hook calls it: the function or class, checked."""
    if decorated is None:
        return functools.partial(checked, typechecker=typechecker)
    if inspect.isclass(decorated):
        return _with_checked_fields(decorated, typechecker)
    if not isinstance(decorated, FunctionType):
        return jaxtyped(decorated, typechecker=typechecker)
    return _checked_function(decorated, typechecker)


def _with_checked_fields(kind: type, typechecker: Check) -> type:
    """A dataclass whose fields are checked when one is made; any other class as it is."""
    init = vars(kind).get("__init__")
    if dataclasses.is_dataclass(kind) and init is not None and not hasattr(init, "__wrapped__"):
        kind.__init__ = _checked_function(init, typechecker)
    return kind


def _checked_function(function: FunctionType, typechecker: Check) -> Callable[..., Any]:
    written = function.__annotations__
    hints = {name: _meant(hint, function.__globals__) for name, hint in written.items()}
    function.__annotations__ = hints
    inner = typechecker(function)
    function.__annotations__ = written
    if inner is function:  # it says nothing that could be checked
        return function
    inner.__annotations__ = written
    return _of_one_set_of_sizes(inner) if any(map(_names_shapes, hints.values())) else inner


def _of_one_set_of_sizes(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jaxtyped("context"):
            return function(*args, **kwargs)

    return call


def _meant(hint: Any, names: dict[str, Any]) -> Any:
    """What a written annotation stands for; anything, where it names what is not known yet."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, names)
    except Exception:
        return Any


def _names_shapes(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_names_shapes, hint))
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(_names_shapes, get_args(hint)))
