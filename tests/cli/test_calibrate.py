"""`training.calibrate`: a policy that has passed the tilt is weakened, once, at a run's end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from nablaflow.estimators import contrastive
from nablaflow.evaluation.calibration import Calibration
from nablaflow.evaluation.guard import Guard, Look
from nablaflow.evaluation.measure import Subject
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.summary import SampleSet
from nablaflow.runs.run import Run
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.training.loop import Trainer
from tests.support.cli_runs import train_far

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
ON = ("training.calibrate=true", "evaluation.bank=16")
FITTED = (
    *("method.gamma=one", "method.step=exact", "method.reverse_weight=0", "flow=null"),
    *("method.value=contrastive", "training.value_samples=64"),
)
GUARD = "guard={every: 1, n: 4, max_kl: 1.0e9, action: stop}"


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each calibration finds half the strength; how it is found has tests of its own."""

    def found(subject: Subject, *_: Any, **named: Any) -> Calibration:
        subject.model.adapter.settle(0.5)
        return Calibration(Estimate(2.0, 0.1), Estimate(0.5, 0.05))

    monkeypatch.setattr("nablaflow.runs.calibrate.calibrate", found)


def policy(run: Path) -> dict[str, torch.Tensor]:
    """That of the last checkpoint."""
    return load_checkpoint(list_checkpoints(run)[-1]).tensors["policy"]


def check_halved(own: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    for name, value in own.items():
        torch.testing.assert_close(value, whole[name] * (0.5 if "lora_B" in name else 1.0))


@pytest.mark.usefixtures("half")
def test_what_is_kept_saved_and_measured_is_the_weaker_policy(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("plain", "own"):
        (tmp_path / name).mkdir()
    plain = train_far(settings, tmp_path / "plain")
    run = train_far(settings, tmp_path / "own", *ON)
    check_halved(policy(run), policy(plain))
    file = "lora/pytorch_lora_weights.safetensors"
    saved, whole = load_file(run / file), load_file(plain / file)
    for name, value in saved.items():
        torch.testing.assert_close(value, whole[name] * (0.5 if "lora_B" in name else 1.0))
    figures, before = (json.loads((r / "summary.json").read_text()) for r in (run, plain))
    assert figures["calibrated"] == {"update": 2, "strength": 0.5}
    assert figures["policy"]["reward_mean"] != before["policy"]["reward_mean"]
    assert "calibrated" not in before
    said = "calibrate: 200% ± 10% of the way to the exact tilt's mean reward; from here on the"
    assert said in (run / "log.txt").read_text()


@pytest.mark.usefixtures("half")
def test_it_is_once_after_each_end(settings: dict[str, Any], tmp_path: Path, cli: Cli) -> None:
    """A finished run is not weakened again by --resume, but a plain one may be by it."""
    run = train_far(settings, tmp_path)
    recipe, first = run / "config.yaml", policy(run)
    for told in ("calibrated, if the reference bank tells the tilt, and", "measured as it is"):
        done = cli("train", recipe, *ON, "--resume")
        assert done.exit_code == 0, done.stderr
        assert f"nothing is trained, and the policy is {told}" in done.stderr
        check_halved(policy(run), first)
    done = cli("train", recipe, *ON, "training.updates=3", "--resume")
    assert done.exit_code == 0, done.stderr
    assert json.loads((run / "summary.json").read_text())["calibrated"]["update"] == 3
    off = ("training.calibrate=false", "training.updates=4", "--resume")
    done = cli("train", recipe, *ON, *off)
    assert done.exit_code == 0, done.stderr
    assert "calibrated" not in json.loads((run / "summary.json").read_text())


def test_a_bank_that_did_not_tell_leaves_it_to_a_larger_one(
    settings: dict[str, Any], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the line about a missing tilt advises: --resume with another evaluation.bank."""

    def found(subject: Subject, bank: SampleSet, *_: Any, **named: Any) -> Calibration:
        if len(bank) < 32:
            return Calibration(None, Estimate(1.0, 0.0))
        subject.model.adapter.settle(0.5)
        return Calibration(Estimate(2.0, 0.1), Estimate(0.5, 0.05))

    monkeypatch.setattr("nablaflow.runs.calibrate.calibrate", found)
    run = train_far(settings, tmp_path, *ON)
    first = policy(run)
    assert "calibrated" not in json.loads((run / "summary.json").read_text())
    done = cli("train", run / "config.yaml", *ON, "evaluation.bank=32", "--resume")
    assert done.exit_code == 0, done.stderr
    check_halved(policy(run), first)


def test_one_that_left_all_is_undone_and_found_again(
    settings: dict[str, Any], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By more images, say: then it is past the tilt by more than chance."""
    found = Calibration(Estimate(1.1, 0.1), Estimate(1.0, 0.0))
    monkeypatch.setattr("nablaflow.runs.calibrate.calibrate", lambda *_, **named: found)
    run = train_far(settings, tmp_path, *ON)
    for asked, told in (("false", None), ("true", {"update": 2, "strength": 1.0})):
        done = cli("train", run / "config.yaml", f"training.calibrate={asked}", "--resume")
        assert done.exit_code == 0, done.stderr
        assert "again as it was trained" not in done.stderr
        assert json.loads((run / "summary.json").read_text()).get("calibrated") == told


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    ("of", "weakened"),
    [
        (("evaluation.bank=16",), True),
        (("evaluation.bank=0",), False),
        (("evaluation.bank=16", "training.calibrate=false"), False),
        (("evaluation.bank=16", "method.prior_strength=0.5", "method.step=published"), False),
    ],
)
def test_without_a_word_it_is_where_there_is_a_tilt_to_be_at(
    settings: dict[str, Any], tmp_path: Path, of: tuple[str, ...], weakened: bool
) -> None:
    run = train_far(settings, tmp_path, "training.calibrate=null", *of)
    assert ("calibrated" in json.loads((run / "summary.json").read_text())) is weakened


def stronger(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Each calibration finds half as much strength again; which of them might, by ``up``."""
    asked = []

    def found(subject: Subject, *_: Any, up: bool) -> Calibration:
        asked.append(up)
        subject.model.adapter.settle(1.5)
        return Calibration(Estimate(0.7, 0.05), Estimate(1.5, 0.05))

    monkeypatch.setattr("nablaflow.runs.calibrate.calibrate", found)
    monkeypatch.setattr(contrastive, "MOST", 8)
    monkeypatch.setattr(contrastive, "CONTRASTED", 16)
    return asked


@pytest.mark.parametrize(("action", "held"), [("stop", True), ("roll-back", True), ("warn", False)])
def test_a_strength_beyond_a_guards_budget_is_left(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    held: bool,
) -> None:
    """One that only warns says so, and lets it be. What the guard remembers is of the training."""
    stronger(monkeypatch)
    own, looks = Guard.look, []

    def look(guard: Guard, update: int, on_progress: Callable[[int], None]) -> Look:
        looks.append(update)
        kl = 7.0 if len(looks) == 3 else 1.0  # after both updates, and at the strength
        return replace(own(guard, update, on_progress), kl=kl)

    monkeypatch.setattr(Guard, "look", look)
    guard = f"guard={{every: 1, n: 4, max_kl: 5.0, action: {action}}}"
    run = train_far(settings, tmp_path, *ON, *FITTED, guard)
    assert looks == [1, 2, 2]
    figures = json.loads((run / "summary.json").read_text())
    assert figures["calibrated"] == {"update": 2, "strength": 1.0 if held else 1.5}
    assert figures["guard"]["tripped"] is None
    assert figures["guard"]["last"]["kl"] == 1.0
    (said,) = (line for line in (run / "log.txt").read_text().splitlines() if "calibrate:" in line)
    beyond = "; at 1.5 times the strength the guard's kl 7 is above its budget of 5"
    assert said.endswith(beyond)
    assert ("the policy stays as it is" in said) is held
    kept = load_checkpoint(list_checkpoints(run)[-1]).tensors
    assert ("trained" in kept) is not held


@pytest.mark.parametrize(
    ("given", "up"),
    [
        ((), False),
        (FITTED, True),
        ((*FITTED, GUARD), True),
    ],
    ids=["forward-looking", "a fitted value", "within a guard's budgets"],
)
def test_a_fitted_value_may_be_strengthened(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    up: bool,
) -> None:
    """What is kept, saved and said is that, and `training.calibrate=false` takes it back."""
    asked = stronger(monkeypatch)
    run = train_far(settings, tmp_path, *ON, *given)
    assert asked == [up]
    kept = load_checkpoint(list_checkpoints(run)[-1]).tensors
    for name, value in kept["trained"].items():
        scale = 1.5 if "lora_B" in name else 1.0
        torch.testing.assert_close(kept["policy"][name], scale * value)
    said = "what was trained had less reward than the run&#x27;s exact tilt"
    assert said in (run / "report.html").read_text()
    train_far(settings, tmp_path, *ON[1:], *given, "training.calibrate=false", "--resume")
    for name, value in policy(run).items():
        assert torch.equal(value, kept["trained"][name])


@pytest.mark.usefixtures("half")
def test_training_goes_on_from_what_was_trained(
    settings: dict[str, Any], tmp_path: Path, cli: Cli
) -> None:
    """A run that ended earlier is, when it has as many updates, the run that never did."""
    for name in ("whole", "own"):
        (tmp_path / name).mkdir()
    whole = train_far(settings, tmp_path / "whole", *ON, "training.updates=3")
    run = train_far(settings, tmp_path / "own", *ON)
    done = cli("train", run / "config.yaml", "training.updates=3", "--resume")
    assert done.exit_code == 0, done.stderr
    torch.testing.assert_close(policy(run), policy(whole), rtol=0, atol=0)
    weaker = policy(run)
    done = cli("train", run / "config.yaml", "training.calibrate=false", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "the policy is again as it was trained, and measured" in done.stderr
    check_halved(weaker, policy(run))
    assert "calibrated" not in json.loads((run / "summary.json").read_text())
    assert "the policy is again as it was trained" in (run / "log.txt").read_text()


@pytest.mark.usefixtures("half")
def test_a_failure_before_the_next_update_leaves_a_finished_run_as_it_is(
    settings: dict[str, Any], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_far(settings, tmp_path, *ON)
    kept = policy(run)

    def fails(trainer: Trainer) -> None:
        raise RuntimeError("the reward's own")

    monkeypatch.setattr(Trainer, "step", fails)
    done = cli("train", run / "config.yaml", "training.updates=3", "--resume")
    assert done.exit_code == 1
    torch.testing.assert_close(policy(run), kept, rtol=0, atol=0)
    Run.open(run).pipeline()


@pytest.mark.usefixtures("half")
def test_an_average_is_left_and_that_is_said(settings: dict[str, Any], tmp_path: Path) -> None:
    run = train_far(settings, tmp_path, *ON, "adapter.ema_decay=0.9")
    said = (run / "log.txt").read_text()
    assert "at strength 0.5 ± 0.05; the average of adapter.ema_decay stays as it is" in said


@pytest.mark.usefixtures("half")
def test_a_run_killed_while_it_is_kept_goes_on_from_what_was_trained(
    settings: dict[str, Any], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only checkpoint is replaced then: the old one has lost its name, the new has none."""
    rename = os.replace

    def pull_the_plug(old: Path, new: Path) -> None:
        if list(Path(old).parent.glob(".partial-old-step-*")):
            raise KeyboardInterrupt
        rename(old, new)

    only = ("training.keep_checkpoints=1", "training.checkpoint_every=50")
    whole = train_far(settings, tmp_path, *ON, *only)
    kept = policy(whole)
    shutil.rmtree(whole)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", pull_the_plug)
        with pytest.raises(AssertionError):
            train_far(settings, tmp_path, *ON, *only)
    assert list_checkpoints(whole) == []
    done = cli("train", whole / "config.yaml", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "nothing is trained" in done.stderr
    torch.testing.assert_close(policy(whole), kept, rtol=0, atol=0)


@pytest.fixture
def last_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Guard.look

    def found(guard: Guard, update: int, told: Callable[[int], None]) -> Look:
        return replace(look(guard, update, told), reward=float(update))

    monkeypatch.setattr(Guard, "look", found)


@pytest.mark.usefixtures("half", "last_is_best")
def test_the_guards_best_is_not_taken_for_the_weaker_policy_of_the_same_update(
    settings: dict[str, Any], tmp_path: Path, cli: Cli
) -> None:
    run = train_far(settings, tmp_path, *ON, "guard.every=1", "guard.n=4")
    check_halved(policy(run), load_checkpoint(run / "checkpoints/best-000002").tensors["policy"])
    given = ("--n", 8, "--metrics", "reward", "--json")
    figures = json.loads(cli("eval", run, *given).stdout)
    rows = {row["name"]: row["reward"]["value"] for row in figures["protocol"]["rows"]}
    assert rows["policy"] == pytest.approx(figures["policy"]["reward_mean"])
    assert rows["guard-best"] != pytest.approx(rows["policy"], rel=1e-4)
    for which, measured in (("best", False), ("last", True)):
        given = ("--format", "diffusers", "--checkpoint", which, "--out", which)
        done = cli("export", run, *given)
        assert done.exit_code == 0, done.stderr
        card = Path(which, "README.md").read_text()
        assert ("mean reward" in card) is measured
        said = "0.5 of what was trained, in the weights; training.calibrate left 0.5"
        assert (said in card) is measured


@pytest.mark.usefixtures("half")
def test_what_reads_the_run_says_so(settings: dict[str, Any], tmp_path: Path, cli: Cli) -> None:
    run = train_far(settings, tmp_path, *ON, "adapter.ema_decay=0.9")
    done = cli("eval", run, "--n", 8, "--checkpoints", "last", "--json")
    assert json.loads(done.stdout)["calibrated"] == {"update": 2, "strength": 0.5}
    done = cli("compare", run, "--n", 8, "--out", "c")
    assert done.exit_code == 0, done.stderr
    said = "after update 2 training.calibrate put the policy at strength 0.5; the last figures"
    assert said in done.stderr
    for which in ("step-1", "step-2"):
        done = cli("sample", run, "--n", 1, "--checkpoint", which, "--out", which)
        assert done.exit_code == 0, done.stderr
        assert ("the policy at strength 0.5 of what was trained" in done.stderr) is (
            which == "step-2"
        )
    for more, strength in ((("--strength", 0.5), "0.25"), (("--ema",), None)):
        done = cli("export", run, *more, "--format", "kohya", "--out", "x", "--overwrite")
        assert done.exit_code == 0, done.stderr
        card = Path("x", "README.md").read_text()
        assert (f"strength: `{strength} of what was trained" in card) is (strength is not None)
        assert ("training.calibrate left 0.5" in card) is (strength is not None)


@pytest.mark.usefixtures("half")
def test_a_checkpoint_before_the_last_is_seen_as_it_was_trained(
    settings: dict[str, Any], tmp_path: Path, cli: Cli
) -> None:
    """Of a run that ended there and has gone on later: its curves are of what was trained."""
    found: dict[str, list[list[Any]]] = {}
    for name, given in (("plain", ("training.calibrate=false",)), ("own", ())):
        (tmp_path / name).mkdir()
        run = train_far(settings, tmp_path / name, "evaluation.bank=16", *given)
        done = cli("train", run / "config.yaml", "training.updates=3", "--resume")
        assert done.exit_code == 0, done.stderr
        looked = json.loads(cli("eval", run, "--n", 8, "--metrics", "reward", "--json").stdout)
        cli("compare", run, "--n", 8, "--out", name)
        cells = json.loads(Path(name, "warmth.json").read_text())["cells"]
        cli("gallery", run, "--n", 2, "--strength", 1, "--out", f"{name}-images")
        positions = json.loads(Path(f"{name}-images", "gallery.json").read_text())["positions"]
        found[name] = [
            [row["reward"]["value"] for row in looked["protocol"]["rows"][1:]],
            [point["reward_mean"] for point in cells[0]["points"]],
            [row["rewards"] for row in positions[1:3]],  # after the reference
        ]
    for plain, own in zip(found["plain"], found["own"], strict=True):
        assert [a == b for a, b in zip(plain, own, strict=True)] == [True, False]


def test_without_a_bank_it_is_refused_before_any_work(
    settings: dict[str, Any], tmp_path: Path, cli: Cli, recipe: Path
) -> None:
    done = cli("train", recipe, "training.calibrate=true", "evaluation.bank=0")
    assert done.exit_code == 2
    assert "training.calibrate: it asks for the exact tilt's mean reward" in done.stderr
    assert not (recipe.parent / "run").exists()
