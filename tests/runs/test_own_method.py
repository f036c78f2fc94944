"""A method of the user's own: an object in Python, a class in a file by its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import jaxtyping
import pytest
import torch
import yaml
from pydantic import Field

import nablaflow as nf
from nablaflow.config.named_method import method_settings
from nablaflow.config.overrides import apply_overrides, load_config
from nablaflow.config.parse import parse_config
from nablaflow.config.parse_method import parse_method
from nablaflow.errors import UserError
from nablaflow.methods.own import load_method
from nablaflow.runs import align
from nablaflow.runs.evaluate import evaluate_run
from nablaflow.runs.saved_config import load_run_config
from nablaflow.runs.trust import methods_of, methods_of_recipe
from tests.support.tiny_run import unmeasured

pytestmark = pytest.mark.usefixtures("lean_runs")

SOURCE = """
from typing import ClassVar
import torch
import nablaflow as nf
from pydantic import Field

class Pull(nf.Method):
    name: ClassVar[str] = "pull"
    needs_reward_gradient: ClassVar[bool] = False
    weight: float = Field(default=1.0, description="of the only term")

    @property
    def uses_flow(self):
        return False

    def losses(self, batch, networks):
        t = batch.transitions
        prediction = networks.model.predict(t.x, t.k, batch.condition)
        return nf.Losses({"pull": self.weight * prediction.epsilon.square().flatten(1).mean(1)})

class Nameless(nf.Method):
    needs_reward_gradient: ClassVar[bool] = False
    def losses(self, batch, networks): ...

class Half(nf.Method):
    name: ClassVar[str] = "half"
    needs_reward_gradient: ClassVar[bool] = False

thing = 3
"""


class Handed(nf.Method):
    """Of this file, so that nothing can load it by a place."""

    name: ClassVar[str] = "handed"
    needs_reward_gradient: ClassVar[bool] = False
    weight: float = Field(default=1.0, description="of the only term")

    @property
    def uses_flow(self) -> bool:
        return False

    def losses(self, batch: nf.TrainingBatch, networks: nf.Networks) -> nf.Losses:
        t = batch.transitions
        prediction = networks.model.predict(t.x, t.k, batch.condition)
        return nf.Losses({"square": self.weight * prediction.epsilon.square().flatten(1).mean(1)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a short run without what a method may leave out."""
    training = {**settings["training"], "updates": 1}
    adapter = {**settings["adapter"], "ema_decay": None}
    return {**settings, "training": training, "adapter": adapter, "flow": None}


def test_a_recipe_names_a_class_by_its_place(file: Path, plain: dict[str, Any]):
    spec = f"{file}:Pull"
    values = {**plain, "method": {"name": spec, "beta": 2.0, "weight": 3.0}}
    method: Any = parse_config(values, load_method).method
    assert (type(method).__name__, method.beta, method.weight) == ("Pull", 2.0, 3.0)
    assert method_settings(method) == {"name": spec, "beta": 2.0, "weight": 3.0}
    changed = apply_overrides(plain, [f"method={spec}", "method.weight=5.0"])
    assert changed["method"] == {"name": spec, "beta": 100.0, "weight": 5.0}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Nameless", "Nameless has no name; write name: ClassVar"),
        ("Half", "Half has no losses; define it in the class"),
        ("thing", "must be a class that derives from nablaflow.Method"),
        ("Pul", "has no Pul; did you mean Pull"),
    ],
)
def test_what_is_no_method_is_one_line(file: Path, name: str, words: str):
    with pytest.raises(UserError, match=rf"^method[^\n]*{words}"):
        parse_method({"name": f"{file}:{name}", "beta": 1.0}, load_method)


def test_an_unknown_setting_of_it_is_one_line(file: Path):
    with pytest.raises(UserError, match=r"method\.wait: unknown key for .* did you mean weight\?"):
        parse_method({"name": f"{file}:Pull", "beta": 1.0, "wait": 1.0}, load_method)


def test_settings_that_are_data_run_no_file(file: Path, plain: dict[str, Any]):
    file.write_text("raise SystemExit('it was run')")
    with pytest.raises(UserError, match="is code, which is not run here"):
        parse_config({**plain, "method": {"name": f"{file}:Pull", "beta": 2.0}})


def test_an_object_without_a_name_is_one_line():
    class Bare(nf.Method):
        needs_reward_gradient: ClassVar[bool] = False

        def losses(self, batch: Any, networks: Any) -> Any: ...

    with pytest.raises(UserError, match=r"^method: Bare has no name; write name: ClassVar"):
        parse_method(Bare(beta=1.0))


def of_foreign_run(file: Path, folder: Path, plain: dict[str, Any]) -> Path:
    folder.mkdir()
    method = {"name": f"{file}:Pull", "beta": 2.0}
    text = yaml.safe_dump({**plain, "method": method, "output_dir": str(folder)})
    (folder / "config.yaml").write_text(text)
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_a_run_of_somebody_else_runs_its_method_with_the_users_word_only(
    file: Path, tmp_path: Path, plain: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    run = of_foreign_run(file, tmp_path / "foreign", plain)
    file.write_text(SOURCE + "\nprint('it was run')\n")
    for load in (
        lambda: load_run_config(run, find=methods_of(run, trusted=False)),
        lambda: evaluate_run(run, None),
        lambda: nf.sample(run),
        lambda: load_config(
            run / "config.yaml", [], {}, methods_of_recipe(run / "config.yaml", trusted=False)
        ),
    ):
        with pytest.raises(UserError, match=r"asks for code .*mine\.py:Pull; that needs your word"):
            load()
    assert "it was run" not in "".join(capsys.readouterr())
    config = load_run_config(run, find=methods_of(run, trusted=True))
    assert method_settings(config.method)["name"] == f"{file}:Pull"
    assert "it was run" in capsys.readouterr().err


def test_a_run_by_its_place_is_measured_by_whoever_trained_it(file: Path, plain: dict[str, Any]):
    """Training here is the user's word: no flag is needed afterwards."""
    values = {**plain, "method": f"{file}:Pull", "evaluation": {"n": 6, "batch": 6}}
    values["method"] = {"name": f"{file}:Pull", "beta": 0.0}
    run = align.run(parse_config(values, load_method))
    assert evaluate_run(run.folder, 6, only_last=True)["policy"]["n"] == 6


def test_an_object_is_trained_resumed_and_measured_in_its_session(
    plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(align, "finish", unmeasured)
        config = parse_config({**plain, "method": Handed(beta=2.0, weight=0.5)})
        run = align.run(config)
        saved = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert saved["method"] == {"name": "python:handed", "beta": 2.0, "weight": 0.5}
        more = config.training.model_copy(update={"updates": 2})
        align.run(config.model_copy(update={"training": more}), resume=True)
    assert [record["update"] for record in run.metrics] == [1, 2]
    assert all(record["loss_square"] > 0 for record in run.metrics)
    assert nf.evaluate(run, n=6, only_last=True)["policy"]["n"] == 6
    with pytest.raises(UserError, match=r"handed to nablaflow\.align: put its class in a file"):
        nf.evaluate(run.folder, n=6)


def test_the_laboratory_takes_an_object_too():
    class Still(nf.Method):
        name: ClassVar[str] = "still"
        needs_reward_gradient: ClassVar[bool] = False

        def losses(self, batch: nf.TrainingBatch, networks: nf.Networks) -> nf.Losses:
            t = batch.transitions
            prediction = networks.model.predict(t.x, t.k, batch.condition)
            return nf.Losses({"none": 0.0 * prediction.epsilon.flatten(1).sum(1)})

    problem = nf.exact.Problem(
        prior=nf.exact.GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1)),
        reward=nf.exact.LinearReward([1.0, 0.0]),
        beta=1.0,
        steps=4,
    )
    result = nf.exact.evaluate(problem, Still(beta=1.0), updates=1, batch=8, n=200)
    assert result.method == "still"


def test_a_mean_for_a_loss_is_refused(monkeypatch: pytest.MonkeyPatch):
    """It was taken for the loss of each transition, and divided by their number once more."""

    class Mean(nf.Method):
        name: ClassVar[str] = "mean"
        needs_reward_gradient: ClassVar[bool] = False

        def losses(self, batch: nf.TrainingBatch, networks: nf.Networks) -> nf.Losses:
            t = batch.transitions
            prediction = networks.model.predict(t.x, t.k, batch.condition)
            return nf.Losses({"mean": prediction.epsilon.square().mean()})

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in a notebook
    problem = nf.exact.named_problem("ring")
    with pytest.raises(UserError, match=r"^method mean: losses gave shape \(\) for 'mean'"):
        nf.exact.evaluate(problem, Mean(beta=1.0), updates=1, batch=8, n=100)
