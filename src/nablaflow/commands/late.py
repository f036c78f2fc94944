"""Modules that are loaded when something of them is first asked for."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any

_LOCK = RLock()


def load_late(name: str) -> None:
    """Have a module loaded by its first use in place of its import, if it is there at all.

    The standard library's `LazyLoader` does not do for a module that is imported more than once: a
    second import looks at its ``__spec__``, which loads it.
    """
    if name in sys.modules:
        return
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # the package that it is in
        return
    if spec is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _Late
    sys.modules[name] = module


class _Late(ModuleType):
    """A module whose file is yet to be run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks through all modules asks for these
            raise AttributeError(name)
        with _LOCK:
            self._run()
        return ModuleType.__getattribute__(self, name)

    def _run(self) -> None:
        """Run it, once; while it runs, what it has not defined yet is not there."""
        spec = vars(self)["__spec__"]
        if "__begun__" in vars(self) or spec is None or spec.loader is None:
            return
        self.__begun__ = True
        try:
            spec.loader.exec_module(self)
        except BaseException:
            del self.__begun__
            raise
