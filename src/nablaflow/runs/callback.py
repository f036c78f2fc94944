"""What a user's function is told after each update, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list

from nablaflow.errors import UserError, one_line, show

OnUpdate = Callable[[dict[str, Any]], bool | None]
"""Told the record of an update, as metrics.jsonl has it; True stops training."""


class Callback:
    """A function of the user's, called on the main process after each update.

    What it raises stops training after the update, with a checkpoint; `settle` raises it then.
    """

    def __init__(self, function: Any) -> None:
        if function is not None and not callable(function):
            raise UserError(f"on_update: must be a function of the record, not {show(function)}")
        self._function: Callable[..., Any] | None = function
        self._failure: BaseException | None = None

    def __call__(self, record: dict[str, Any]) -> bool:
        """Whether to stop."""
        if self._function is None:
            return False
        try:
            answer: Any = self._function(dict(record))
        except (Exception, SystemExit) as error:  # who ends the program wants what was trained
            self._failure = error
            return True
        if answer is None or isinstance(answer, bool | np.bool_):
            return bool(answer)
        self._failure = TypeError(f"returned {show(answer)}; return True to stop, else None")
        return True

    def settle(self, update: int, folder: Path) -> None:
        """Raise on every process what the function raised on the main one.

        Raises:
            UserError: it failed; the run is whole.
        """
        if self._function is None:
            return
        line = broadcast_object_list([self._line(update, folder)])[0]
        if line is not None:
            raise UserError(line) from self._failure

    def _line(self, update: int, folder: Path) -> str | None:
        if self._failure is None:
            return None
        name = getattr(self._function, "__name__", type(self._function).__name__)
        what = f"{type(self._failure).__name__}: {self._failure}"
        return one_line(
            f"on_update: {name} failed after update {update} ({what}); all of it is saved in "
            f"{folder}: mend the function and go on with resume=True"
        )
