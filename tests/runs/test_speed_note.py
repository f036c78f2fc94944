"""A large model without a GPU is told before it trains, a small one is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nablaflow.runs import checks


def test_only_a_large_model_is_told(
    make_parts: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    assert not any("no GPU" in line for line in make_parts().choices)
    monkeypatch.setattr(checks, "LARGE", 10)
    (line,) = [line for line in make_parts().choices if "no GPU" in line]
    assert "may take hours" in line
