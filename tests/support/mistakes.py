"""A user's mistake, as it is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nablaflow.errors import UserError


def line_of(work: Callable[[], Any]) -> str:
    """What the work is refused with; it is one line."""
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)
