"""`gallery`: a run at each checkpoint and strength, from the same noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from nablaflow.features import pooled_pixels
from nablaflow.fitting.images import read_image
from nablaflow.rewards import load
from nablaflow.runs import gallery, sample
from nablaflow.studio.galleries import read_gallery
from tests.support.cli_runs import train_far

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained far from its reference, with a checkpoint after each of two updates."""
    return train_far(settings, tmp_path_factory.mktemp("gallery"))


def test_every_position_and_what_it_scores(cli: Cli, run: Path, settings: dict[str, Any]):
    made = cli("gallery", run, "--n", 2, "--strength", 0, "--strength", 1, "--out", "g", "--json")
    assert made.exit_code == 0, made.stderr
    table = json.loads(Path(json.loads(made.stdout)["gallery"]).read_text())
    rows = {row["folder"]: row for row in table["positions"]}
    checkpoints = [path.name for path in sorted((run / "checkpoints").glob("step-*"))]
    assert list(rows) == ["reference", *checkpoints, "strength-0", "strength-1"]

    def images(name: str) -> torch.Tensor:
        return torch.cat([read_image(path) for path in sorted(Path("g", name).glob("*.png"))])

    # No strength is the reference, all of it the last checkpoint: the noise is the same.
    assert torch.equal(images("strength-0"), images("reference"))
    assert torch.equal(images("strength-1"), images(checkpoints[-1]))
    assert not torch.equal(images("strength-1"), images("reference"))
    reward = load(settings["reward"])
    for name, row in rows.items():
        # A picture has 8 bits, what was scored has more.
        scores = reward(images(name), table["prompts"])
        torch.testing.assert_close(torch.tensor(row["rewards"]), scores, atol=0.02, rtol=0.02)
        moved = (pooled_pixels(images(name)) - pooled_pixels(images("reference"))).norm(dim=1)
        torch.testing.assert_close(torch.tensor(row["distances"]), moved, atol=0.1, rtol=0.02)


def test_its_images_are_those_of_sample(cli: Cli, run: Path):
    assert cli("gallery", run, "--n", 2, "--strength", 0.5, "--out", "g").exit_code == 0
    assert cli("sample", run, "--n", 2, "--strength", 0.5, "--out", "s").exit_code == 0
    for path in Path("s").glob("*.png"):
        assert path.read_bytes() == Path("g", "strength-0.5", path.name).read_bytes()


def test_a_gallery_there_is_kept(cli: Cli, run: Path):
    Path("g").mkdir()
    Path("g/gallery.json").write_text("{}")
    refused = cli("gallery", run, "--n", 1, "--out", "g")
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert Path("g/gallery.json").read_text() == "{}"


@pytest.mark.parametrize(("command", "module"), [("gallery", gallery), ("sample", sample)])
def test_a_second_one_in_the_same_folder_is_refused(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch, command: str, module: Any
):
    """Else there would be images of one and what the other's score."""
    honest, ended = module.save_picture, []
    options = ("--n", 1, "--out", "g", "--overwrite")

    def meanwhile(*given: Any) -> None:
        monkeypatch.setattr(module, "save_picture", honest)
        ended.append(cli(command, run, "--seed", 1, *options))
        honest(*given)

    monkeypatch.setattr(module, "save_picture", meanwhile)
    first = cli(command, run, *options)
    assert first.exit_code == 0, first.stderr
    assert ended[0].exit_code == 2
    assert "nablaflow: --out: another command writes in g; wait" in ended[0].stderr


def test_one_that_is_stopped_leaves_no_table_of_other_images(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ("gallery", run, "--n", 2, "--out", "g")
    assert cli(*options).exit_code == 0
    assert read_gallery(Path("g")) is not None
    honest, left = gallery.save_picture, [True, True, True]

    def stopped(*given: Any) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        honest(*given)

    monkeypatch.setattr(gallery, "save_picture", stopped)
    assert cli(*options, "--seed", 1, "--overwrite").exit_code == 130
    assert read_gallery(Path("g")) is None
    monkeypatch.setattr(gallery, "save_picture", honest)
    assert cli(*options, "--seed", 1).exit_code == 0
    assert read_gallery(Path("g")) is not None


def test_a_flipped_digit_of_its_table_is_not_shown(cli: Cli, run: Path):
    assert cli("gallery", run, "--n", 2, "--out", "g").exit_code == 0
    table = Path("g", "gallery.json")
    content = bytearray(table.read_bytes())
    content[content.index(b'"rewards": [') + 20] ^= 1
    table.write_bytes(content)
    assert read_gallery(Path("g")) is None
