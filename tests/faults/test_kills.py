"""A run is killed at any moment, wherever it is, and goes on bit for bit."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.runs import align
from nablaflow.storage.run_folder import is_begun
from tests.faults.conftest import SHORT
from tests.faults.processes import differences, evidence, in_a_process

pytestmark = pytest.mark.usefixtures("lean_runs")

OFTEN = ("training.updates=4", "training.keep_checkpoints=1", "training.sample_every=2")
Make = Callable[..., Config]


@pytest.fixture
def make(settings: dict[str, Any], here: Path) -> Make:
    return lambda *more: parse_config(apply_overrides(settings, [*SHORT, *OFTEN, *more]))


@pytest.fixture
def straight(make: Make, tmp_path: Path) -> tuple[Path, float]:
    """A run that nothing happens to, and seconds of the processor that it takes."""
    config = make(f"output_dir={tmp_path}/straight")
    before = time.process_time()
    align.run(config)
    return config.output_dir, time.process_time() - before


def killed_after(work: Callable[[], object], seconds: float, said: Path) -> int:
    """Exit status of a process that is killed after so much processor time, wherever it is then.

    The timer's signal is left to the system, so no line of Python is needed for it to act.
    """

    def start_and_work() -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        work()

    return in_a_process(start_and_work, said)


def killed_each_time(config: Config, moments: Sequence[float], wanted: Path) -> int:
    """How many attempts were killed at their moments; the last is left alone and must be whole."""
    run, killed = config.output_dir, 0
    said = run.with_name(f"{run.name}.said")
    for seconds in moments:
        work = partial(align.run, config, resume=is_begun(run))
        status = killed_after(work, seconds, said)
        assert status in (0, -signal.SIGPROF), evidence(run, said)
        killed += status != 0
    status = in_a_process(partial(align.run, config, resume=is_begun(run)), said)
    assert status == 0, evidence(run, said)
    told = differences(run, wanted)
    assert told == [], f"{told}, killed after {list(moments)}\n{evidence(run, said)}"
    return killed


def killed_of(make: Make, place: Path, straight: tuple[Path, float], runs: int, times: int) -> int:
    """How many attempts of so many runs were killed, each run so many times, at drawn moments."""
    wanted, longest = straight
    killed = 0
    for number in range(runs):
        draw = random.Random(number)
        moments = [draw.uniform(0.0, longest) for _ in range(times)]
        config = make(f"output_dir={place}/run-{number}")
        killed += killed_each_time(config, moments, wanted)
    return killed


def test_a_run_that_is_killed(make: Make, tmp_path: Path, straight: tuple[Path, float]):
    assert killed_of(make, tmp_path, straight, runs=3, times=1) > 0


@pytest.mark.slow
def test_a_hundred_runs_that_are_killed(make: Make, tmp_path: Path, straight: tuple[Path, float]):
    assert killed_of(make, tmp_path, straight, runs=100, times=1) > 50


@pytest.mark.slow
@pytest.mark.usefixtures("train_only")
def test_a_hundred_runs_that_are_killed_again_and_again(
    make: Make, tmp_path: Path, straight: tuple[Path, float]
):
    """Each checkpoint that was whole is gone on from."""
    assert killed_of(make, tmp_path, straight, runs=100, times=5) > 200
