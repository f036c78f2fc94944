"""On a device of its own a run is what it is on the processor, and no operation mixes the two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ["nabla-db", "nabla-td", "terminal", "draft", "alignprop", "refl", "ddpo", "dag-db"]
NAMES += ["dag-kl", "reward-weighted-regression", "path-weighted-matching", "flow-grpo"]
FEW: list[dict[str, Any]] = [
    {"name": "residual-nabla-db", "beta": 100.0},
    {"name": "adjoint-matching", "beta": 10.0},
]
MANY: list[dict[str, Any]] = [
    {"name": "residual-nabla-db", "beta": 100.0, "reverse_weight": 1.0, "gamma": "measured"},
    {"name": "residual-nabla-db", "beta": 100.0, "value": "contrastive"},
    *({"name": name, "beta": 10.0} for name in [*NAMES, "diffusion-nft"]),
]


@pytest.mark.parametrize("methods", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_two_updates_are_the_processors(tiny_model: Path, methods: list[dict[str, Any]]):
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.other_device", str(tiny_model), json.dumps(methods)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    for method, line in zip(methods, lines, strict=True):
        found = json.loads(line)
        # A fit of hundreds of steps ends elsewhere by rounding: with two threads for one, too.
        fitted = method.get("value") == "contrastive"
        for there, here in zip(found["card"], found["cpu"], strict=True):
            assert there.keys() == here.keys()
            for name in ["reward_mean"] if fitted else here:
                expected = pytest.approx(here[name], rel=1e-3, abs=1e-6)
                assert there[name] == expected, (method, name)
