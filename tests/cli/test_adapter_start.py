"""A run that begins at the user's own LoRA: what it records, goes on from, and asks for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from nablaflow.storage import checksums
from tests.cli.conftest import Cli
from tests.support.cli_runs import train_far

pytestmark = pytest.mark.usefixtures("lean_runs")

FILE = "pytorch_lora_weights.safetensors"
ONE = ("training.updates=1", "training.checkpoint_every=1")


@pytest.fixture(scope="module")
def earlier(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an earlier run has saved."""
    return train_far(settings, tmp_path_factory.mktemp("earlier")) / "lora"


@pytest.fixture
def lora(earlier: Path, here: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(earlier, here / "earlier" / "lora"))


def test_a_run_begins_where_another_ended(cli: Cli, recipe: Path, here: Path, lora: Path) -> None:
    """Next to no learning: what is saved is what was given."""
    still = ("optimizer.learning_rate=1e-12", "adapter.alpha=3.0")
    result = cli("train", recipe, f"adapter.start={lora}", *still, *ONE)
    assert result.exit_code == 0, result.stderr
    config = yaml.safe_load((here / "run/config.yaml").read_text())
    assert config["adapter"]["start_hash"] == checksums.of_file(lora / FILE)
    for name, value in load_file(lora / FILE).items():
        torch.testing.assert_close(load_file(here / "run/lora" / FILE)[name], value)


def test_the_file_is_needed_until_there_is_a_checkpoint(
    cli: Cli, recipe: Path, here: Path, lora: Path, tiny_model: Path
) -> None:
    moved = Path(shutil.move(lora, here / "style"))
    told = f"adapter.start={moved}"
    assert cli("train", recipe, told, *ONE).exit_code == 0
    more = ("training.updates=2", "training.checkpoint_every=1")
    again = Path(shutil.copytree(moved, here / "elsewhere"))
    result = cli("train", recipe, f"adapter.start={again}", *more, "--resume")
    assert result.exit_code == 0, result.stderr
    state = load_file(moved / FILE)
    save_file({name: value + 1 for name, value in state.items()}, moved / FILE)
    refused = cli("train", recipe, told, *more, "--resume")
    assert refused.exit_code == 2
    assert "adapter.start" in refused.stderr
    assert "another file than the run was begun with" in refused.stderr
    there = f"adapter.start={again}"
    save_file({name: value + 1 for name, value in state.items()}, again / FILE)
    assert cli("train", recipe, there, *more, "--resume").exit_code == 0  # it is read no more
    shutil.rmtree(moved)
    assert cli("train", recipe, told, *more, "--resume").exit_code == 0
    assert cli("sample", "run", "--n", 1, "--out", "images").exit_code == 0
    assert cli("export", "run", "--format", "diffusers", "--out", "out").exit_code == 0
    StableDiffusionPipeline.from_pretrained(tiny_model).load_lora_weights(str(here / "out"))


def test_another_run_may_begin_with_another(cli: Cli, recipe: Path, here: Path, lora: Path) -> None:
    assert cli("train", recipe, f"adapter.start={lora}", *ONE).exit_code == 0
    other = Path(shutil.copytree(lora, here / "other"))
    state = load_file(other / FILE)
    save_file({name: value + 1 for name, value in state.items()}, other / FILE)
    begun = ("train", here / "run/config.yaml", f"output_dir={here}/next", *ONE)
    result = cli(*begun, f"adapter.start={other}")
    assert result.exit_code == 0, result.stderr
    config = yaml.safe_load((here / "next/config.yaml").read_text())
    assert config["adapter"]["start_hash"] == checksums.of_file(other / FILE)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("adapter.start=gone.safetensors",), "adapter.start: there is no file gone.safetensors"),
        (("adapter.start=earlier/lora", "adapter.rank=3"), "set adapter.rank=2"),
        (("adapter.start=earlier",), "did you mean earlier/lora?"),
        (("adapter.start=earlier/lora", "adapter.kind=full"), "adapter.start: every weight trains"),
        (("adapter.start=earlier/lora", "adapter.start_hash=ab"), "another file"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line_and_no_folder(
    cli: Cli, recipe: Path, here: Path, lora: Path, given: tuple[str, ...], said: str
) -> None:
    result = cli("train", recipe, *given)
    assert (result.exit_code, (here / "run").exists()) == (2, False)
    assert said in " ".join(result.stderr.split())


def test_another_persons_run_asks_before_it_reads_the_file(
    cli: Cli, recipe: Path, here: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", recipe, f"adapter.start={lora}", *ONE).exit_code == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "of-another"))
    copied = ("train", here / "run/config.yaml", "output_dir=mine")
    refused = cli(*copied)
    assert refused.exit_code == 2
    assert f"file{lora}" in "".join(refused.stderr.split())
