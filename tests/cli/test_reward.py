"""`nablaflow reward fit` and `score`: what is written, what is printed, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

Cli = Callable[..., Result]


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    folder = tmp_path / "rated"
    folder.mkdir()
    lines = ["image,score"]
    for n in range(24):
        Image.new("RGB", (8, 8), (10 * n,) * 3).save(folder / f"{n:02d}.png")
        lines.append(f"{n:02d}.png,{n}")
    (folder / "ratings.csv").write_text("\n".join(lines))
    return folder


def test_fit_writes_a_reward_that_scores_and_sorts(cli: Cli, here: Path, rated: Path):
    result = cli("reward", "fit", str(rated), "--features", "pixels", "--members", "3", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["features"] == "pixels"
    assert told["held_out"]["accuracy"] > 0.9
    assert sorted(path.name for path in here.iterdir()) == [
        "reward.md",
        "reward.png",
        "reward.safetensors",
    ]
    result = cli("reward", "score", str(rated), "--reward", "reward.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["images"]
    assert [Path(row["image"]).name for row in rows[:2]] == ["23.png", "22.png"]
    assert all(row["uncertainty"] >= 0 for row in rows)
    again = cli("reward", "fit", str(rated), "--features", "pixels")
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_any_reward_scores_a_folder(cli: Cli, rated: Path):
    result = cli("reward", "score", str(rated), "--reward", "brightness")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.index("23.png") < result.stdout.index("00.png")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "03.png").unlink(), "there is no image '03.png'"),
        (lambda folder: (folder / "03.png").write_bytes(b"x"), "not an image that can be decoded"),
        (lambda folder: (folder / "ratings.csv").write_text("image,score\n"), "0 rows are too few"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_fitted(
    cli: Cli, here: Path, rated: Path, break_it: Callable[[Path], None], message: str
):
    break_it(rated)
    result = cli("reward", "fit", str(rated), "--features", "pixels")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(here.iterdir())


def test_a_folder_without_images_and_an_unknown_reward(cli: Cli, here: Path, rated: Path):
    result = cli("reward", "score", str(here), "--reward", "warmth")
    assert result.exit_code == 2
    assert "holds no image" in result.stderr
    result = cli("reward", "score", str(rated), "--reward", "warmt")
    assert result.exit_code == 2
    assert "did you mean warmth" in result.stderr


def test_an_unknown_reward_of_the_demo(cli: Cli):
    result = cli("demo", "--reward", "preferences")
    assert result.exit_code == 2
    assert "did you mean preference" in result.stderr
