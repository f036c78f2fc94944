"""A reward, a method, an estimator and a metric from outside the package: one file, one line each.

Each is written to a folder of its own and entered into one list, which is the line; everything
that is promised of its kind then works by its name, with no other part of the package told.
A model family has the same test of its own, `tests/models/test_family_from_outside.py`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import nablaflow
from nablaflow import estimators, exact
from nablaflow.cli import app
from nablaflow.methods import METHODS
from nablaflow.metrics.catalog import METRICS
from nablaflow.rewards import REWARDS

pytestmark = pytest.mark.usefixtures("lean_runs")

REWARD = """
def greenness(images, prompts):
    return images[:, 1].mean((1, 2))
"""

ESTIMATOR = """
from typing import ClassVar, Literal

from nablaflow.estimators import Estimator, ValueGradients
from nablaflow.estimators.reference import reward_gradient
from nablaflow.methods.matching import Matching


class Plain(Estimator):
    name: Literal["plain"] = "plain"
    trust: float = 1.0

    def estimate(self, path, networks, beta):
        gradient = self.trust * beta * reward_gradient(networks, path.x0, path.prompts)
        return ValueGradients(gradient[path.transitions.trajectory])


class PlainMatching(Matching):
    name: ClassVar[str] = "plain-matching"

    def value_estimator(self):
        return Plain(trust=0.5)
"""

METHOD = """
from typing import ClassVar

from nablaflow.methods.contract import Losses, StepwiseMethod, mean_square


class Stay(StepwiseMethod):
    name: ClassVar[str] = "stay"
    needs_reward_gradient: ClassVar[bool] = False
    strength: float = 1.0

    @property
    def uses_flow(self):
        return False

    def losses(self, batch, networks):
        t = batch.transitions
        change = networks.model.predict(t.x, t.k, batch.condition).epsilon - t.epsilon
        return Losses({"stay": self.strength * mean_square(change)})
"""

METRIC = """
from nablaflow.metrics.bootstrap import measured, prompt_means
from nablaflow.metrics.contract import Metric


def measure_whiteness(own, reference, resampling):
    values = own.rows.double().cpu().flatten(1).mean(1) / 255
    counts = resampling.counts(own.prompt_index)

    def statistic(counts):
        return prompt_means(values, own.prompt_index, counts)

    return measured(statistic, resampling, counts, n=len(own))


def least(prompts, dim):
    return 2 * prompts


WHITENESS = Metric("whiteness of images", "pictures", measure_whiteness, least)
"""


def outside(folder: Path, name: str, text: str) -> ModuleType:
    """A module from a folder that is no part of the package."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ran(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def trained(settings: Mapping[str, Any], folder: Path, *overrides: str) -> dict[str, Any]:
    """The summary of a run of the tiny model, made by the command."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dict(settings)))
    ran("train", recipe, "training.updates=1", *overrides)
    return json.loads((folder / "run" / "summary.json").read_text())


def test_a_reward_is_one_line_in_one_list(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = outside(tmp_path, "green", REWARD)
    monkeypatch.setitem(REWARDS, "greenness", module.greenness)
    summary = trained(settings, tmp_path, "reward=greenness + 0.5*warmth")
    assert 0.0 < summary["reference"]["reward_mean"] < 1.5
    assert "reward: greenness + 0.5*warmth" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_method_is_one_line_in_one_list(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay = outside(tmp_path, "stay", METHOD).Stay
    monkeypatch.setitem(METHODS, "stay", stay)
    own = {**settings, "method": {"name": "stay", "beta": 2.0, "strength": 3.0}}
    trained(own, tmp_path)
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"]
    assert (kept["name"], kept["strength"]) == ("stay", 3.0)
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert any("stay" in key for key in record)
    problem = exact.named_problem("ring")
    found = exact.evaluate(problem, stay(beta=problem.beta), updates=2, batch=4, n=100)
    assert found.method == "stay"


def test_a_metric_is_one_line_in_one_list(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured by eval, stands in summary and report, is a budget, and is compared."""
    module = outside(tmp_path, "whiteness", METRIC)
    monkeypatch.setitem(METRICS, "whiteness", module.WHITENESS)
    run = tmp_path / "run"
    summary = trained(
        settings,
        tmp_path,
        "evaluation.metrics=[whiteness]",
        "guard={every: 1, n: 6, budgets: {whiteness: 0.0}}",
    )
    for column in ("reference", "policy"):
        assert 0.0 < summary[column]["whiteness"] < 1.0
        assert summary[column]["whiteness_se"] > 0.0
    guard = summary["guard"]
    assert guard["budgets"]["whiteness"] == 0.0
    assert 0.0 < guard["last"]["whiteness"] < 1.0
    report = (run / "report.html").read_text()
    said = re.findall("whiteness of images", report, re.IGNORECASE)
    assert len(said) >= 2  # the table's row, the guard's curve
    protocol = json.loads(ran("eval", run, "--metrics", "whiteness", "--json"))["protocol"]
    assert protocol["rows"][-1]["whiteness"]["value"] == pytest.approx(
        summary["policy"]["whiteness"]
    )
    compared = ran("compare", run, "--metrics", "whiteness", "--out", tmp_path / "both", "--json")
    rows = {row["method"]: row for row in json.loads(compared)["rows"]}
    assert rows["residual-nabla-db"]["whiteness"] == pytest.approx(summary["policy"]["whiteness"])
    assert "whiteness of images" in (tmp_path / "both" / "warmth.md").read_text()


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("whiteness: 0.999", "guard.budgets.whiteness: the reference itself has"),
        ("whitenes: 0.5", "guard.budgets: no metric 'whitenes'; did you mean whiteness?"),
        ("diversity: 0.5", "guard.min_diversity"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_before_training(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: str,
    words: str,
) -> None:
    module = outside(tmp_path, "whiteness", METRIC)
    monkeypatch.setitem(METRICS, "whiteness", module.WHITENESS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    guard = f"guard={{every: 1, n: 6, budgets: {{{budget}}}}}"
    result = CliRunner().invoke(app, ["train", str(recipe), guard])
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_an_estimator_is_one_file_that_any_method_may_use(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = outside(tmp_path, "plain", ESTIMATOR).PlainMatching
    monkeypatch.setitem(METHODS, "plain-matching", kind)
    trained({**settings, "method": {"name": "plain-matching", "beta": 2.0}}, tmp_path)
    problem = exact.named_problem("ring")
    found = exact.evaluate(problem, kind(beta=problem.beta), updates=2, batch=4, n=100)
    assert found.method == "plain-matching"


def test_an_estimators_name_in_recipes_is_one_name_in_one_list() -> None:
    """The list is a union of types, so what counts is lines: imported, listed, exported."""
    text = Path(str(estimators.__file__)).read_text()
    union = text.split("AnyEstimator = Annotated[")[1].split("Field(")[0]
    kinds = re.findall(r"\b[A-Z]\w+\b", union)
    assert len(kinds) == len(set(kinds)) > 5
    for kind in kinds:
        assert len([line for line in text.splitlines() if re.search(rf"\b{kind}\b", line)]) == 3


def test_one_list_is_all_that_names_a_kind() -> None:
    """No other part of the package compares names of metrics or pixel rewards with a text."""
    package = Path(nablaflow.__file__).parent
    listed = {"metrics": "catalog.py", "rewards": "__init__.py"}
    for name, room in (("vendi", "metrics"), ("mmd", "metrics"), ("symmetry", "rewards")):
        told = [path for path in package.rglob("*.py") if f'"{name}"' in path.read_text()]
        assert package / room / listed[room] in told
        assert all(path.parent == package / room for path in told), told
