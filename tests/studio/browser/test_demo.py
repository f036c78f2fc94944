"""From clicks to an aligned model: a scripted rater with a known taste at the real page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "studio_demo.py"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks/ is not here")
def test_two_hundred_clicks_become_an_aligned_model(chromium: Any, tmp_path: Path):
    out = tmp_path / "result.json"
    folder = tmp_path / "studio"
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = json.loads(out.read_text())
    assert found["pairs"] == 200
    assert found["way"] >= 0.8
    assert found["diversity_of_policy"] > 0.8 * found["diversity_of_tilt"]
