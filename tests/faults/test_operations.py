"""A run dies at each of its file operations, as by `kill -9`; what is left goes on, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nablaflow.config.overrides import apply_overrides
from nablaflow.config.recipe import Config, parse_config
from nablaflow.errors import UserError
from nablaflow.runs import align
from tests.faults.conftest import SHORT
from tests.faults.processes import differences, in_a_process, operations_of

KILLED = 9


@pytest.fixture
def make(settings: dict[str, Any], here: Path) -> Callable[..., Config]:
    return lambda *more: parse_config(apply_overrides(settings, [*SHORT, *more]))


@pytest.fixture(autouse=True)
def _train_only(request: pytest.FixtureRequest):
    """The short form leaves out what is not training, which takes longest."""
    if not request.node.get_closest_marker("slow"):
        request.getfixturevalue("train_only")


def killed_at(work: Callable[[], None], place: int) -> None:
    left = [place]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(KILLED)

    assert in_a_process(work, count) == KILLED


def places(total: int, request: pytest.FixtureRequest) -> list[int]:
    slow = request.node.get_closest_marker("slow") is not None
    return list(range(total)) if slow else list(range(0, total, max(1, total // 3)))


Unlike = dict[int, list[str]]
"""How a run ended otherwise, by the operation that it died at."""


def begin_and_die(make: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Unlike:
    straight = make(f"output_dir={tmp_path}/straight")
    align.run(straight)
    total = operations_of(
        lambda: align.run(make(f"output_dir={tmp_path}/count")) and None, tmp_path / "counter"
    )
    assert total > 20
    unlike: Unlike = {}
    for place in places(total, request):
        config = make(f"output_dir={tmp_path}/run-{place}")
        killed_at(lambda config=config: align.run(config) and None, place)
        resume = (config.output_dir / "config.yaml").is_file()
        align.run(config, resume=resume)
        if told := differences(config.output_dir, straight.output_dir):
            unlike[place] = told
    return unlike


def replace_and_die(make: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Unlike:
    """The old run or the new one is there, whole, whenever the new one dies."""
    straight = make(f"output_dir={tmp_path}/straight")
    old = ("seed=7", "training.updates=1")
    align.run(straight)
    align.run(make(f"output_dir={tmp_path}/old", *old))
    count = make(f"output_dir={tmp_path}/count")
    align.run(make(f"output_dir={tmp_path}/count", *old))
    total = operations_of(lambda: align.run(count, overwrite=True) and None, tmp_path / "counter")
    unlike: Unlike = {}
    for place in places(total, request):
        config = make(f"output_dir={tmp_path}/run-{place}")
        align.run(make(f"output_dir={config.output_dir}", *old))
        killed_at(lambda config=config: align.run(config, overwrite=True) and None, place)
        try:
            align.run(config, resume=True)
        except UserError:  # the new one had not begun: the old one is there
            align.run(make(f"output_dir={config.output_dir}", *old), resume=True)
            unlike[place] = differences(config.output_dir, tmp_path / "old")
            align.run(config, overwrite=True)
        unlike[place] = unlike.get(place, []) + differences(config.output_dir, straight.output_dir)
        assert yaml.safe_load((config.output_dir / "config.yaml").read_text())["seed"] == 0
        assert not (config.output_dir / ".replaced").exists()
    return {place: told for place, told in unlike.items() if told}


def test_a_run_that_begins(make: Any, tmp_path: Path, request: pytest.FixtureRequest):
    assert begin_and_die(make, tmp_path, request) == {}


def test_a_run_that_replaces_another(make: Any, tmp_path: Path, request: pytest.FixtureRequest):
    assert replace_and_die(make, tmp_path, request) == {}


@pytest.mark.slow
def test_a_run_that_begins_at_every_operation(
    make: Any, tmp_path: Path, request: pytest.FixtureRequest
):
    assert begin_and_die(make, tmp_path, request) == {}


@pytest.mark.slow
def test_a_run_that_replaces_another_at_every_operation(
    make: Any, tmp_path: Path, request: pytest.FixtureRequest
):
    assert replace_and_die(make, tmp_path, request) == {}
