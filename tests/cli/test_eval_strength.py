"""`nablaflow eval --strength`: a policy's figures between the reference and itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import nablaflow as nf
from nablaflow.cli import app
from nablaflow.storage import checksums
from tests.support.cli_runs import train_far

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
METRIC = "evaluation.metrics=[vendi]"


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_far(settings, tmp_path_factory.mktemp("strengths"), "evaluation.n=8", METRIC)


@pytest.fixture(scope="module")
def figures(run: Path) -> dict[str, Any]:
    asked = ["eval", str(run), "--checkpoints", "last", "--strength", "0.5", "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _halved(run: Path, to: Path) -> Path:
    """The run, with half of its adapter's update in the checkpoint."""
    shutil.copytree(run, to)
    (last,) = to.glob("checkpoints/step-000002")
    file, manifest = last / "policy.safetensors", last / "progress.json"
    tensors = load_file(file)
    save_file({n: t * (0.5 if "lora_B" in n else 1.0) for n, t in tensors.items()}, file)
    told = checksums.unseal(manifest.read_text())
    told["files"][file.name] = checksums.of_file(file)
    manifest.write_text(checksums.sealed(told))
    return to


def test_half_the_strength_is_the_policy_with_half_the_update(
    run: Path, figures: dict[str, Any], cli: Cli, tmp_path: Path
) -> None:
    half = _halved(run, tmp_path / "half")
    result = cli("eval", half, "--checkpoints", "last", "--json")
    assert result.exit_code == 0, result.stderr
    row = dict(figures["strengths"]["rows"][1])
    assert row.pop("strength") == 0.5
    expected = json.loads(result.stdout)
    assert row.pop("closing") == expected["closing"]
    assert row.pop("closing_se") == expected["closing_se"]
    measured = {name: value for name, value in row.items() if value is not None}
    wanted = {name: value for name, value in expected["policy"].items() if name in measured}
    assert {"reward_mean", "diversity", "vendi"} < measured.keys()
    assert measured == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_reference_and_the_policy_stand_beside_it(figures: dict[str, Any]) -> None:
    rows = figures["strengths"]["rows"]
    assert [row["strength"] for row in rows] == [0.0, 0.5, 1.0]
    for row, column in ((rows[0], "reference"), (rows[2], "policy")):
        assert row["reward_mean"] == figures[column]["reward_mean"]
    assert len({row["reward_mean"] for row in rows}) == 3


def test_the_fit_is_of_the_whole_policy(figures: dict[str, Any], run: Path, cli: Cli) -> None:
    alone = json.loads(cli("eval", run, "--checkpoints", "last", "--json").stdout)
    assert figures["fit"] == alone["fit"]
    assert "strengths" not in alone


def test_a_table_for_a_terminal(run: Path, cli: Cli) -> None:
    result = cli("eval", run, "--checkpoints", "last", "--strength", "0.5", "--strength", "2")
    assert result.exit_code == 0, result.stderr
    assert "of the way, %" in result.stdout
    assert "No strength can be named that reaches the exact tilt: there are no" in result.stdout


def test_images_that_are_none_are_not_the_rewards_fault(run: Path, cli: Cli) -> None:
    result = cli("eval", run, "--checkpoints", "last", "--strength", "1e30")
    assert result.exit_code == 2
    assert "evaluation: images of the model are not finite" in result.stderr
    assert "a smaller strength" in result.stderr


def test_in_python(run: Path, figures: dict[str, Any]) -> None:
    found = nf.evaluate(run, only_last=True, strengths=[0.5], trusted=True)
    assert found["strengths"] == figures["strengths"]
    with pytest.raises(nf.UserError, match="strengths"):
        nf.evaluate(run, strengths=[-1.0])
