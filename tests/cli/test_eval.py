"""`nablaflow eval`: the protocol over a run's checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from nablaflow.cli import app
from nablaflow.estimators import contrastive
from tests.support.cli_runs import train

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
DEFAULT = ["reward", "diversity", "vendi", "mmd"]


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three updates, of which the checkpoints of the second and the third are kept."""
    root = tmp_path_factory.mktemp("run")
    changes = ("training.updates=3", "training.checkpoint_every=2", "evaluation.n=8")
    train(settings, root, *changes)
    return root / "run"


def _protocol(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["protocol"]


@pytest.fixture(scope="module")
def protocol(run: Path) -> dict[str, Any]:
    return _protocol(CliRunner().invoke(app, ["eval", str(run), "--json"]))


def test_the_reference_each_checkpoint_and_the_policy_in_order(protocol: dict[str, Any]):
    rows = [(row["name"], row["update"]) for row in protocol["rows"]]
    assert rows == [("reference", 0), ("step-000002", 2), ("policy", 3)]
    assert protocol["metrics"] == DEFAULT
    for row in protocol["rows"]:
        for name in DEFAULT:
            figure = row[name]
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] == 8


def test_what_eight_images_are_too_few_for_is_left_out_with_the_reason(protocol: dict[str, Any]):
    assert list(protocol["refused"]) == ["frechet"]
    assert "8 images are too few, 193 are needed; use --n 193" in protocol["refused"]["frechet"]


def test_figures_agree_with_the_summary_and_repeat(run: Path, protocol, cli: Cli):
    again = json.loads(cli("eval", run, "--json").stdout)
    assert again["protocol"] == protocol
    for row, column in ((protocol["rows"][0], "reference"), (protocol["rows"][-1], "policy")):
        assert row["reward"]["value"] == pytest.approx(again[column]["reward_mean"])
        assert row["diversity"]["value"] == pytest.approx(again[column]["diversity"])


def test_only_the_last_checkpoint_and_chosen_metrics(run: Path, cli: Cli):
    found = _protocol(
        cli("eval", run, "--checkpoints", "last", "--metrics", "mmd, reward", "--json")
    )
    assert [row["name"] for row in found["rows"]] == ["reference", "policy"]
    assert found["metrics"] == ["mmd", "reward"]


def test_other_prompts_leave_the_tilt_out(run: Path, cli: Cli, here: Path):
    (here / "others.txt").write_text("a star\na star\na triangle\na shape\n")
    result = cli("eval", run, "--prompts", "others.txt", "--n", 12, "--json")
    assert _protocol(result)["prompts"] == 3
    assert json.loads(result.stdout)["exact_tilt"] is None
    assert "1 duplicates" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metrics", "diversty"), ["--metrics", "did you mean diversity?"]),
        (("--features", "pixel"), ["--features", "did you mean pixels?"]),
        (("--metrics", ""), ["--metric", "is empty"]),
        (("--metrics", "frechet"), ["frechet", "--n 193"]),
        (("--metrics", "precision"), ["precision", "--n 20"]),
        (("--n", "6", "--metrics", "vendi"), ["vendi", "--n 8"]),
        (("--prompts", "nowhere.txt"), ["nowhere.txt"]),
    ],
)
def test_a_mistake_is_one_line_before_any_work(run: Path, cli: Cli, here: Path, options, words):
    result = cli("eval", run, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "sample the" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words)
    assert list(here.iterdir()) == []


def test_the_table_and_the_curves(run: Path, cli: Cli, here: Path):
    before = sorted(path.name for path in run.iterdir())
    result = cli("eval", run, "--out", "curves")
    assert result.exit_code == 0, result.stderr
    for word in ("step-000002", "aligned", "Vendi score", "Left out: frechet", "evaluation.png"):
        assert word in result.stdout
    with Image.open(here / "curves" / "evaluation.png") as picture:
        assert picture.width > 800
    assert sorted(path.name for path in run.iterdir()) == before
    assert cli("eval", run, "--checkpoints", "last", "--plot").exit_code == 0
    assert (run / "evaluation.png").is_file()
    (run / "evaluation.png").unlink()


def test_held_out_prompts_are_what_is_measured(run: Path, recipe: Path, cli: Cli, here: Path):
    changes = ("prompts=[a circle, a square, a star, a shape]", "evaluation.hold_out=0.5")
    trained = cli("train", recipe, *changes, "training.updates=1", "--json")
    assert trained.exit_code == 0, trained.stderr
    found = _protocol(cli("eval", "run", "--n", 8, "--metrics", "reward", "--json"))
    assert found["prompts"] == 2


PLAIN = ("method.step=exact", "method.reverse_weight=0", "method.gamma=one", "flow=null")


@pytest.mark.parametrize(
    "found",
    [
        ("method.value=forward-looking",),
        ("method.gamma=measured",),
        ("method.value=contrastive", "training.value_samples=64", "method.beta=4.0"),
    ],
    ids=["nothing", "gamma", "value"],
)
def test_the_default_methods_fit_is_measured_and_said(
    recipe: Path, cli: Cli, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    """Whatever is found of the reference before the first update is read from the checkpoint."""
    monkeypatch.setattr(contrastive, "MOST", 8)
    monkeypatch.setattr(contrastive, "CONTRASTED", 16)
    own = (*PLAIN, *found, "optimizer.learning_rate=1e-9")
    trained = cli("train", recipe, *own, "--json")
    assert trained.exit_code == 0, trained.stderr
    options = ("--n", 8, "--metrics", "reward")
    fit = json.loads(cli("eval", "run", *options, "--json").stdout)["fit"]
    # A policy that has not moved follows nothing, whatever it is asked for.
    assert fit["asked"] > 0
    assert fit["unfollowed"] == pytest.approx(fit["asked"], rel=1e-3)
    said = " ".join(cli("eval", "run", *options).stdout.split())
    assert "along the policy's own trajectories" in said


def test_no_fit_where_the_target_is_the_trainings_own_or_another_rewards(
    run: Path, recipe: Path, cli: Cli
):
    options = ("--n", 8, "--metrics", "reward", "--json")
    assert json.loads(cli("eval", run, *options).stdout)["fit"] is None  # its flow network learns
    assert cli("train", recipe, *PLAIN, "--json").exit_code == 0
    other = cli("eval", "run", "reward=brightness", *options)
    assert json.loads(other.stdout)["fit"] is None
