"""Whether the processes of a run were told the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from nablaflow.config.overrides import plain_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs.saved_config import differences


def check_agreement(config: Config, read: Mapping[str, Sequence[str]]) -> None:
    """Refuse processes of several settings: their shares would not be of one batch.

    Every process must call it.

    Args:
        read: what was read from files, which may differ from machine to machine.

    Raises:
        UserError: so it is, on all of them.
    """
    check_same({**plain_config(config), **{name: _digest(lines) for name, lines in read.items()}})


def check_same(told: Mapping[str, Any]) -> None:
    """Refuse processes that differ in plain data by name; every process must call it.

    Raises:
        UserError: so it is, on all of them.
    """
    first, *others = gather_object([dict(told)])
    for place, other in enumerate(others, start=1):
        for name in differences(first, other):
            raise UserError(
                f"{name}: process {place} of this launch has another value than process 0; start "
                "all of them with the same recipe, files and settings, and one run folder that all "
                "see as it is"
            )


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(lines).encode()).hexdigest()
