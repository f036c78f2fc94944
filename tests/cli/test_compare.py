"""`nablaflow compare`: of runs that exist, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from nablaflow.config.overrides import load_config
from nablaflow.models import fingerprint, load_pipeline
from nablaflow.runs.pretrained import dtype_of
from tests.cli.conftest import Ready

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("nablaflow:")]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "residual-nabla-bd"], ["--method:", "residual-nabla-db?"]),
        (["--reward", "warmt"], ["warmt", "warmth?"]),
        (["--methods", "refl", "--reward", "jpeg_compressibility"], ["gradient", "ddpo"]),
        (["--seeds", "0"], ["--seeds", "0", "1 or more"]),
        (["--minutes", "-1"], ["--minutes", "above 0"]),
        (["--held-out", "beauty"], ["beauty", "warmth"]),
        (["--methods", ""], ["--method:", "is empty"]),
        (["--reward", " , "], ["--reward:", "is empty"]),
        (["--metrics", ""], ["--metrics:", "is empty"]),
        (["--methods", "ddpo", "--held-out", ""], ["reward"]),
        (["nowhere", "--methods", "refl"], ["runs or --method,"]),
        (["nowhere", "--calibrate"], ["runs or --method,"]),
        (["nowhere"], ["nowhere", "no run"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    cli: Cli, here: Path, arguments: list[str], words: list[str]
):
    assert_refused(cli("compare", *arguments), *words)
    assert list(here.iterdir()) == []


def test_the_same_run_twice_is_one(cli: Cli, ready: Ready, here: Path):
    ready("one")
    refused = cli("compare", "one", "./one", "--out", "both")
    assert_refused(refused, "compare: one is given twice; give each run once")
    assert not (here / "both").exists()


def test_two_runs_side_by_side(cli: Cli, ready: Ready, here: Path):
    ready("one")
    ready("two", "method.gamma=one")
    result = cli("compare", "one", "two", "--out", "both", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in json.loads(result.stdout)["rows"]}
    # The same method with other settings: the folders' names tell them apart.
    assert list(rows) == ["reference", "one", "two"]
    assert rows["one"]["updates"] == 2
    assert rows["one"]["held_out"] is None  # not the embedded model, and none was given
    assert {path.name for path in (here / "both").iterdir()} >= {
        "warmth.json",
        "warmth.md",
        "warmth.png",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("prompts=[a star, a square]", ["prompts", "two", "one"]),
        ("reward=contrast", ["reward", "two"]),
        ("method.beta=2", ["method.beta", "two"]),
        ("sampler.steps=5", ["sampler", "two"]),
    ],
)
def test_runs_that_one_gauge_cannot_measure(
    cli: Cli, ready: Ready, here: Path, change: str, words: list[str]
):
    small = "training.updates=1"
    ready("one", small)
    ready("two", small, change)
    assert_refused(cli("compare", "one", "two"), *words)


def test_runs_of_other_models_under_one_name(cli: Cli, ready: Ready, here: Path):
    ready("one", "training.updates=1")
    ready("two", "training.updates=1")
    config = here / "two" / "config.yaml"
    config.write_text(config.read_text().replace("model_hash: files:", "model_hash: files:0"))
    assert_refused(cli("compare", "one", "two"), "model_hash", "two")


def test_marks_of_two_makes_are_not_held_against_each_other(cli: Cli, ready: Ready, here: Path):
    """As of a pipeline that was handed over and of the folder that it was loaded from."""
    ready("one", "training.updates=1")
    ready("two", "training.updates=1")
    found = load_config(here / "two" / "config.yaml", [], {})
    weights = fingerprint(load_pipeline(found.model, dtype_of(found)))
    config = here / "two" / "config.yaml"
    config.write_text(config.read_text().replace(str(found.model_hash), weights))
    result = cli("compare", "one", "two", "--out", "both")
    assert result.exit_code == 0, result.output


def test_a_reward_that_was_changed_is_not_read_from_the_folder(cli: Cli, recipe: Path, here: Path):
    """The figures of the reference would be of one function, and the run's of another."""
    code = "def score(images, prompts):\n    return images.mean((1, 2, 3)) + {}\n"
    (here / "mine.py").write_text(code.format(0))
    trained = cli("train", recipe, "reward=mine.py:score", "output_dir=run")
    assert trained.exit_code == 0, trained.stderr
    found = []
    for more in (0, 5):
        (here / "mine.py").write_text(code.format(more))
        done = cli("compare", "run", "--n", 4, "--out", "c", "--json", "--trust-run")
        assert done.exit_code == 0, done.stderr
        found.append([row["reward_mean"] for row in json.loads(done.stdout)["rows"]])
    assert found[1] == pytest.approx([mean + 5 for mean in found[0]], rel=1e-5)
