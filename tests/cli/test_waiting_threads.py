"""Threads soon wait asleep, for other programs' sake, unless the user has said how they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SEEN = """
import sys
import nablaflow.__main__ as program
early = "torch" not in sys.modules
program._share_processors()
import os
print(early, os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("said", "then"),
    [
        ({}, "10000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"KMP_BLOCKTIME": "200"}, "None"),
    ],
)
def test_it_is_said_before_torch_is_loaded(said: dict[str, str], then: str):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    own = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", SEEN],
        env={**own, **said},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", then]
