"""A run dies at each of its file operations, as by `kill -9`; what is left goes on, bit for bit."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs import align
from nablaflow.storage.run_folder import is_begun
from tests.faults.conftest import SHORT
from tests.faults.processes import differences
from tests.faults.states import states_of, torn
from tests.support.tiny_run import unmeasured

OFTEN = (
    "training.updates=3",
    "training.keep_checkpoints=1",
    "training.sample_every=2",
)
"""So that checkpoints and sheets are written, and removed again."""
GUARDED = "guard={every: 1, n: 2, max_kl: 1000.0, action: roll-back}"
"""So that its best checkpoints are, too; for the whole walk, since it takes half of the time."""
OLD = ("seed=7", "training.updates=1")
Make = Callable[..., Config]
Unlike = dict[str, list[str]]
"""How a run ended otherwise, by the state that it died in."""


@pytest.fixture
def make(settings: dict[str, Any], here: Path, request: pytest.FixtureRequest) -> Make:
    whole = request.node.get_closest_marker("slow") is not None
    own = [*SHORT, *OFTEN, *[GUARDED] * whole]
    return lambda *more: parse_config(apply_overrides(settings, [*own, *more]))


def chosen(states: list[Path], request: pytest.FixtureRequest) -> Iterator[Path]:
    """All of them, those cut in the middle of a write as well; four in the short form."""
    assert len(states) > 20
    if request.node.get_closest_marker("slow") is None:
        yield from states[:: len(states) // 3]
        return
    # Before any goes on, since that changes it.
    cut = list(filter(None, itertools.starmap(torn, itertools.pairwise(states))))
    print(f"{len(states)} states, {len(cut)} cut ones")
    yield from (*states, *cut)


def begin_and_die(make: Make, tmp_path: Path, request: pytest.FixtureRequest) -> Unlike:
    world = tmp_path / "world"
    world.mkdir()
    whole = make(f"output_dir={world}/run")
    states = states_of(lambda: align.run(whole), world, tmp_path / "states")
    unlike: Unlike = {}
    for state in chosen(states, request):
        config = make(f"output_dir={state}/run")
        align.run(config, resume=is_begun(config.output_dir))
        unlike[state.name] = differences(config.output_dir, whole.output_dir)
    return {state: told for state, told in unlike.items() if told}


def replace_and_die(make: Make, tmp_path: Path, request: pytest.FixtureRequest) -> Unlike:
    """The old run or the new one is there, whole, whenever the new one dies."""
    world, old = tmp_path / "world", tmp_path / "old" / "run"
    align.run(make(f"output_dir={old}", *OLD))
    shutil.copytree(old.parent, world)
    whole = make(f"output_dir={world}/run")
    states = states_of(lambda: align.run(whole, overwrite=True), world, tmp_path / "states")
    unlike: Unlike = {}
    for state in chosen(states, request):
        config, told = make(f"output_dir={state}/run"), []
        try:
            align.run(config, resume=True)
        except UserError:  # the new one had not begun: the old one is there
            align.run(make(f"output_dir={config.output_dir}", *OLD), resume=True)
            told = differences(config.output_dir, old)
            align.run(config, overwrite=True)
        unlike[state.name] = told + differences(config.output_dir, whole.output_dir)
        assert yaml.safe_load((config.output_dir / "config.yaml").read_text())["seed"] == 0
        assert not (config.output_dir / ".replaced").exists()
    return {state: told for state, told in unlike.items() if told}


def finish_and_die(make: Make, tmp_path: Path, request: pytest.FixtureRequest) -> Unlike:
    """What comes after the last update: the adapter, the figures, the pictures, the report."""
    world, trained = tmp_path / "world", tmp_path / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "finish", unmeasured)
        align.run(make(f"output_dir={trained}/run"))
    shutil.copytree(trained, world)
    whole = make(f"output_dir={world}/run")
    states = states_of(lambda: align.run(whole, resume=True), world, tmp_path / "states")
    unlike: Unlike = {}
    for state in chosen(states, request):
        align.run(make(f"output_dir={state}/run"), resume=True)
        assert (state / "run" / "summary.json").is_file()
        unlike[state.name] = differences(state / "run", whole.output_dir)
        unlike[state.name] += sorted(_names(whole.output_dir) ^ _names(state / "run"))
    return {state: told for state, told in unlike.items() if told}


def _names(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


@pytest.mark.usefixtures("train_only")
def test_a_run_that_begins(make: Make, tmp_path: Path, request: pytest.FixtureRequest):
    assert begin_and_die(make, tmp_path, request) == {}


@pytest.mark.usefixtures("train_only")
def test_a_run_that_replaces_another(make: Make, tmp_path: Path, request: pytest.FixtureRequest):
    assert replace_and_die(make, tmp_path, request) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("train_only")
def test_a_run_that_begins_at_every_operation(
    make: Make, tmp_path: Path, request: pytest.FixtureRequest
):
    assert begin_and_die(make, tmp_path, request) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("train_only")
def test_a_run_that_replaces_another_at_every_operation(
    make: Make, tmp_path: Path, request: pytest.FixtureRequest
):
    assert replace_and_die(make, tmp_path, request) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_is_measured_at_every_operation(
    make: Make, tmp_path: Path, request: pytest.FixtureRequest
):
    assert finish_and_die(make, tmp_path, request) == {}
