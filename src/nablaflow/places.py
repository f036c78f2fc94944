"""Where a path that the user wrote is."""

from __future__ import annotations

import os
from pathlib import Path


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path whose ``~`` is the home folder; that of an unknown user is a name like any other.

    A shell leaves it to the program within quotes, after ``=`` and in a recipe.
    """
    return Path(os.path.expanduser(path))
