"""Shapes are checked in tests: a wrong one is told, and no annotation of one is left out."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

import nablaflow
from nablaflow.diffusion.process import at
from nablaflow.diffusion.trajectory import Transitions
from tests.support.shape_checks import MARK, is_array


def test_a_wrong_shape_is_told():
    table, states = torch.ones(5), torch.zeros(2, 3)
    with pytest.raises(BeartypeCallHintViolation, match="Int"):
        at(table, torch.zeros(2, 2, dtype=torch.long), states)
    k = torch.ones(2, dtype=torch.long)
    with pytest.raises(jaxtyping.TypeCheckError, match="x_next"):
        Transitions(states[..., None, None], torch.zeros(3, 3, 1, 1), k, states[..., None, None], k)


def test_no_annotation_of_an_array_is_left_out():
    functions = {f"{each.__module__}.{each.__qualname__}": each for each in _functions()}
    of_arrays = {name for name, each in functions.items() if _has_array(each)}
    assert len(of_arrays) > 300
    assert not {name for name in of_arrays if not hasattr(functions[name], MARK)}


def test_nothing_else_costs_time():
    functions = {f"{each.__module__}.{each.__qualname__}": each for each in _functions()}
    assert not hasattr(functions["nablaflow.settings.plain"], MARK)


def _functions() -> Iterator[Callable[..., Any]]:
    for module in _modules():
        for each in vars(module).values():
            if getattr(each, "__module__", None) != module.__name__:
                continue
            if isinstance(each, FunctionType):
                yield each
            elif inspect.isclass(each):
                yield from _methods(each)


def _modules() -> Iterator[ModuleType]:
    yield nablaflow
    for found in pkgutil.walk_packages(nablaflow.__path__, "nablaflow."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def _methods(kind: type) -> Iterator[Callable[..., Any]]:
    """A class's own; of a dataclass what makes it too, of a property what reads it."""
    for name, each in vars(kind).items():
        if name.startswith("__") and not (name == "__init__" and dataclasses.is_dataclass(kind)):
            continue
        if isinstance(each, property):
            yield each.fget  # pyright: ignore[reportReturnType]
        elif isinstance(each, cached_property):
            yield each.func
        elif isinstance(each, staticmethod | classmethod):
            yield each.__func__
        elif isinstance(each, FunctionType):
            yield each


def _has_array(function: Callable[..., Any]) -> bool:
    try:
        return any(map(is_array, get_type_hints(function).values()))
    except (NameError, TypeError):  # a name for pyright alone; no function of Python's
        return False
