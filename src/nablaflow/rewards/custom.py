"""Rewards of the user's own: ``path/to/file.py:function``."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from nablaflow.errors import UserError, nearest
from nablaflow.places import at_home
from nablaflow.rewards.contract import summary
from nablaflow.rewards.process import left_as_it_was
from nablaflow.storage import checksums

MODULE = "nablaflow_file_"
"""Begins the name of the module that a user's file is."""


def is_custom(spec: str) -> bool:
    """Whether a spec is a path rather than a name of the list."""
    return ":" in spec or spec.endswith(".py")


def is_fitted(spec: str) -> bool:
    """Whether a spec is the file of a fitted reward."""
    return spec.endswith(".safetensors")


def load_function(
    spec: str, what: str = "reward", arguments: str = "(images, prompts)"
) -> Callable[..., Any]:
    """A function of a Python file, which is run for it; see `load_object`.

    Args:
        spec: ``path/to/file.py:function``.
        what: the function is, for messages.
        arguments: that it should take, for messages.

    Raises:
        UserError: no such file or function, not callable, or the file fails to run.
    """
    found = load_object(spec, what)
    _check_callable(f"{what} {spec!r}", found, arguments)
    return found


def load_object(spec: str, what: str, kind: str = "function") -> Any:
    """Import a Python file, which runs it, and take one name out of it.

    A file is run once however many of its names are taken, and anew after it was changed.

    Args:
        spec: ``path/to/file.py:name``; the path is relative to the working directory.
        what: it is, and ``kind`` what it should be, for messages.

    Raises:
        UserError: no such file or name, or the file fails to run.
    """
    # The last colon, since a Windows path has one of its own.
    location, _, attribute = spec.rpartition(":")
    if not location or not attribute.isidentifier():
        raise UserError(f"{what} {spec!r} names no {kind}: write path/to/file.py:{kind}")
    try:
        path = at_home(location).resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no such home
        raise UserError(f"{what} {spec[:60]!r}: no file can have this name ({error})") from None
    if not there:
        raise UserError(f"{what} {spec!r}: there is no file {path}; check the path")
    if path.suffix != ".py":
        raise UserError(f"{what} {spec!r}: {path.name} is not a Python file; its name must end .py")
    module = _run(path, checksums.of_file(path))
    if not hasattr(module, attribute):
        raise UserError(
            f"{what} {spec!r}: {path.name} has no {attribute}; {_hint(attribute, module)}"
        )
    return getattr(module, attribute)


def place_of(kind: type) -> str | None:
    """``path/to/file.py:Class`` of a class that `load_object` found; None for any other."""
    module = sys.modules.get(kind.__module__)
    if module is None or not kind.__module__.startswith(MODULE):
        return None
    return f"{module.__file__}:{kind.__name__}"


@functools.cache
def _run(path: Path, content: str) -> ModuleType:
    """Run a file as a module; ``content`` only tells one version of the file from the next."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"{MODULE}{path.stem}_{digest}"
    loader = _FromSource(name, str(path))
    found = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert found is not None  # the name ends .py
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # Dataclasses and pickle look a module up by its name.
    sys.modules[name] = module
    try:
        with left_as_it_was(f"file {path}"):
            found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(
            f"file {path} fails when imported ({summary(error)}); {_remedy(path, error)}"
        ) from error
    return module


def _remedy(path: Path, error: BaseException) -> str:
    """What to do about a file that fails; `python` alone also looks for modules beside it."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name and any((path.parent / beside).exists() for beside in (f"{name}.py", name)):
        return f"{name} is beside it, which is not searched: set PYTHONPATH={path.parent}"
    return "mend it until `python` runs it without an error"


class _FromSource(SourceFileLoader):
    """Runs what the file says now.

    A compiled copy beside it may be of an earlier text with the same second and size, or be put
    there by somebody else: what the user gave word for is the source.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _hint(attribute: str, module: ModuleType) -> str:
    """The nearest of the names that the file itself defines."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ]
    return nearest(attribute, own) if own else "define it there"


def _check_callable(name: str, found: object, arguments: str) -> None:
    if isinstance(found, type):
        raise UserError(f"{name} is a class: make an instance in the file and name that")
    if not callable(found):
        raise UserError(
            f"{name} is of type {type(found).__name__}, which cannot be called: "
            f"name a function of {arguments}"
        )
