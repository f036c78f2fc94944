"""Disks of a hundred sizes: what does not fit is one line, and what was written before is whole."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs import align
from nablaflow.storage.run_folder import is_begun
from tests.faults.conftest import SHORT
from tests.faults.processes import differences

pytestmark = pytest.mark.usefixtures("lean_runs")

PAGE = 4096  # bytes, which such a disk is made of


@pytest.fixture
def make(settings: dict[str, Any], here: Path) -> Callable[..., Config]:
    return lambda *more: parse_config(apply_overrides(settings, [*SHORT, *more]))


@contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """A disk of ``size`` bytes, in memory."""
    place.mkdir()
    options = f"size={size}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a disk in memory is not permitted here")
    try:
        yield place
    finally:
        # Lazily: a file that is mapped into memory is given up when Python finds the time.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(make: Callable[..., Config], tmp_path: Path, straight: Path, sizes: int) -> list[bool]:
    """Whether the run fitted, from the smallest disk to one with room; each goes on elsewhere."""
    needed = sum(path.stat().st_size + PAGE for path in straight.rglob("*"))
    fitted = []
    for number in range(sizes):
        size = max(1, round(1.5 * needed * (number + 1) / sizes / PAGE)) * PAGE
        with disk(tmp_path / f"disk-{number}", size) as place:
            fitted.append(fits(make(f"output_dir={place}/run")))
            moved = make(f"output_dir={tmp_path}/run-{number}")
            if (place / "run").exists():
                shutil.copytree(place / "run", moved.output_dir)
        align.run(moved, resume=is_begun(moved.output_dir))
        assert differences(moved.output_dir, straight) == []
    return fitted


def fits(config: Config) -> bool:
    told = ""
    try:
        align.run(config)
    except UserError as error:
        told = str(error)
    assert "\n" not in told
    assert not told or "No space left on device" in told
    return not told


def test_a_disk_that_is_too_small_and_one_that_is_not(
    make: Callable[..., Config], tmp_path: Path, trained: Path
):
    fitted = fill(make, tmp_path, trained, 4)
    assert not fitted[0]
    assert fitted[-1]


@pytest.mark.slow
def test_a_hundred_sizes(make: Callable[..., Config], tmp_path: Path, trained: Path):
    fitted = fill(make, tmp_path, trained, 100)
    assert fitted == sorted(fitted)
    assert 10 < sum(fitted) < 90
