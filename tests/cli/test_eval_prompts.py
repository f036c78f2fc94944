"""`nablaflow eval --prompts`: every source and setting that a recipe's prompts may have."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.evaluation.protocol import carry_out
from nablaflow.prompts.sets import load_prompts
from nablaflow.runs import evaluate
from tests.support.cli_runs import train

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
LINES = '{"prompt": "a star", "caption": "one"}\n{"prompt": "a shape", "caption": "two"}\n'
FILES = {
    "a.csv": "prompt,caption\na star,one\na shape,two\n",
    "a.jsonl": LINES,
    "odd #1: it's.csv": "prompt,caption\na star,one\na shape,two\n",
    "[set].txt": "a star\na shape\n",
    "2024": "a star\na shape\n",
    "null": "a star\na shape\n",
}
PROMPTS, CAPTIONS = ["a star", "a shape"], ["one", "two"]


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose own prompts, and its guard's, are gone."""
    root = tmp_path_factory.mktemp("run")
    prompts = root / "own.txt"
    prompts.write_text("a circle\na square\n")
    guard = {"prompts": str(prompts), "n": 4}
    changes = {"prompts": str(prompts), "guard": guard}
    train({**settings, **changes}, root, "training.updates=1")
    prompts.unlink()
    return root / "run"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts that each call measures on."""
    found: list[list[str]] = []

    def watch(subject: Any, *args: Any) -> Any:
        found.append(subject.prompts)
        return carry_out(subject, *args)

    monkeypatch.setattr(evaluate, "carry_out", watch)
    return found


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts of each call that would be measured on, and is not."""
    found: list[list[str]] = []

    def read(config: Config, *args: Any, **named: Any) -> Any:
        found.append(load_prompts(config.prompts, Path(), config.seed))
        raise UserError("the prompts are known")

    monkeypatch.setattr(evaluate, "prepare", read)
    return found


def _measure(cli: Cli, run: Path, prompts: str) -> Result:
    return cli("eval", run, "--prompts", prompts, "--metrics", "reward", "--json")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        *((name, PROMPTS) for name in FILES),
        ("{source: a.csv, column: caption}", CAPTIONS),
        ("{source: a.jsonl, column: caption}", CAPTIONS),
        ("[a star, a shape]", PROMPTS),
    ],
)
def test_files_and_columns(run: Path, cli: Cli, here: Path, unmeasured, value, texts):
    for name, content in FILES.items():
        (here / name).write_text(content)
    result = _measure(cli, run, value)
    assert "the prompts are known" in result.stderr
    assert unmeasured == [texts]


def test_they_are_measured_on(run: Path, cli: Cli, here: Path, seen):
    (here / "a.csv").write_text(FILES["a.csv"])
    result = _measure(cli, run, "a.csv")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["protocol"]["prompts"] == 2
    assert seen == [PROMPTS]


def test_a_data_set_of_the_hub_with_column_and_split(run: Path, cli: Cli, monkeypatch, seen):
    asked = []

    class Rows(dict):
        column_names = ("prompt", "text")

    def load(repo: str, *, split: str) -> Rows:
        asked.append((repo, split))
        return Rows(prompt=PROMPTS, text=CAPTIONS)

    module = types.ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    for value in ("hub:me/set", "{source: hub:me/set, column: text, split: test}"):
        assert _measure(cli, run, value).exit_code == 0
    assert asked == [("me/set", "train"), ("me/set", "test")]
    assert seen == [PROMPTS, CAPTIONS]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{source: a.csv, column: captoin}", ["prompts.column", "did you mean caption?"]),
        ("{source: a.csv, colum: caption}", ["prompts", "did you mean column?"]),
        ("{source: a.csv", ["prompts", "not valid YAML"]),
        ("[" + "a long prompt, " * 40 + "1]", ["prompts", "must be a list of texts"]),
        ("[]", ["prompts", "the list is empty"]),
        ("", ["prompts", "must be"]),
    ],
)
def test_a_mistake_is_one_line(run: Path, cli: Cli, here: Path, value: str, words: list[str]):
    (here / "a.csv").write_text(FILES["a.csv"])
    result = _measure(cli, run, value)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words)
