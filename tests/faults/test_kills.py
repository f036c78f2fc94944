"""A run is killed at any moment, wherever it is, and goes on bit for bit."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nablaflow.config.overrides import apply_overrides
from nablaflow.config.recipe import Config, parse_config
from nablaflow.runs import align
from nablaflow.storage.run_folder import is_begun
from tests.faults.conftest import SHORT
from tests.faults.processes import differences, in_a_process, nothing

UPDATES = "training.updates=6"


@pytest.fixture
def make(settings: dict[str, Any], here: Path) -> Callable[..., Config]:
    return lambda *more: parse_config(apply_overrides(settings, [*SHORT, UPDATES, *more]))


def killed_after(work: Callable[[], object], seconds: float) -> int:
    """Exit status of a process that is killed after so much processor time, wherever it is then.

    The timer's signal is left to the system, so no line of Python is needed for it to act.
    """

    def start_and_work() -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        work()

    return in_a_process(start_and_work, nothing)


def kill_and_resume(
    make: Callable[..., Config], tmp_path: Path, times: int
) -> tuple[int, dict[int, list[str]]]:
    """How many of as many runs were killed before their end, and which resumed to another end."""
    straight = make(f"output_dir={tmp_path}/straight")
    longest = processor_seconds(partial(align.run, straight))
    draw, killed, unlike = random.Random(0), 0, {}
    for number in range(times):
        config = make(f"output_dir={tmp_path}/run-{number}")
        work = partial(align.run, config)
        status = killed_after(work, draw.uniform(0.0, longest))
        assert status in (0, -signal.SIGPROF)
        killed += status != 0
        align.run(config, resume=is_begun(config.output_dir))
        if told := differences(config.output_dir, straight.output_dir):
            unlike[number] = told
    return killed, unlike


def processor_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def test_a_run_that_is_killed(make: Callable[..., Config], tmp_path: Path):
    _, unlike = kill_and_resume(make, tmp_path, 3)
    assert unlike == {}


@pytest.mark.slow
def test_a_run_that_is_killed_a_hundred_times(make: Callable[..., Config], tmp_path: Path):
    killed, unlike = kill_and_resume(make, tmp_path, 100)
    assert killed > 50
    assert unlike == {}


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again(make: Callable[..., Config], tmp_path: Path):
    """Every attempt but the last is killed; each checkpoint that was whole is gone on from."""
    straight = make(f"output_dir={tmp_path}/straight", "training.updates=20")
    longest = processor_seconds(partial(align.run, straight))
    config = make(f"output_dir={tmp_path}/run", "training.updates=20")
    draw = random.Random(1)
    for _ in range(20):
        resume = is_begun(config.output_dir)
        work = partial(align.run, config, resume=resume)
        killed_after(work, draw.uniform(0.0, longest / 4))
    align.run(config, resume=is_begun(config.output_dir))
    assert differences(config.output_dir, straight.output_dir) == []
