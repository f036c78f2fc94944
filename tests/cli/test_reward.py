"""`nablaflow reward fit` and `score`: what is written, what is printed, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image

from nablaflow import fitting

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


@pytest.fixture
def hardly_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits that end long before their best, for tests of something else."""
    few = partial(fitting.HeadSettings, steps=20)
    monkeypatch.setattr(fitting, "HeadSettings", few)


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


@pytest.mark.parametrize("there", ["reward.safetensors", "reward.md", "reward.png"])
def test_fit_replaces_nothing_unasked(cli: Cli, here: Path, rated: Path, there: str):
    (here / there).write_text("mine")
    (rated / "ratings.csv").unlink()
    refused = cli("reward", "fit", str(rated), "--features", "pixels")
    assert refused.exit_code == 2
    assert f"there already: {there}; use --overwrite" in refused.stderr
    assert [(path.name, path.read_text()) for path in here.iterdir()] == [(there, "mine")]


@pytest.mark.parametrize(
    "command",
    [
        ("fit", "--features", "pixels"),
        ("score", "--reward", "brightness"),
    ],
)
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:63", "--device: there is no cuda:63 here; use auto or cpu"),
        ("meta", "--device: there is no meta here"),
        ("gpu", "--device: no such device 'gpu'; give auto, cpu"),
    ],
)
def test_a_device_that_is_not_here(
    cli: Cli, here: Path, rated: Path, command: tuple[str, ...], device: str, message: str
):
    what, *options = command
    result = cli("reward", what, str(rated), *options, "--device", device)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(here.iterdir())


@pytest.mark.usefixtures("hardly_trained")
def test_the_features_are_on_the_device_that_is_named(
    cli: Cli, here: Path, rated: Path, monkeypatch: pytest.MonkeyPatch
):
    from nablaflow import features

    seen = []
    pixels = features.FEATURES["pixels"]

    def load(weights: str | None, device: torch.device) -> features.FeatureExtractor:
        seen.append(str(device))
        return pixels(weights, device)

    monkeypatch.setitem(features.FEATURES, "pixels", load)
    fit = ("reward", "fit", str(rated), "--features", "pixels", "--members", "2")
    result = cli(*fit, "--device", "cpu:0")
    assert result.exit_code == 0, result.stderr
    assert seen == ["cpu:0"]


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


@pytest.mark.usefixtures("hardly_trained")
def test_score_takes_the_weights_of_the_features(cli: Cli, here: Path, rated: Path):
    from diffusers import AutoencoderKL

    from nablaflow import nano

    vae = AutoencoderKL.from_pretrained(nano.path(), subfolder="vae", torch_dtype=torch.float32)
    for weight in vae.parameters():
        weight.data *= 1.2
    vae.save_pretrained(here / "other" / "vae")
    fit = ("reward", "fit", str(rated), "--features", "nano", "--members", "2")
    result = cli(*fit, "--weights", "other", "--json")
    assert result.exit_code == 0, result.stderr
    assert "with the weights of `other`" in (here / "reward.md").read_text()
    score = ("reward", "score", str(rated), "--reward", "reward.safetensors")
    right = cli(*score, "--weights", "other", "--json")
    assert right.exit_code == 0, right.stderr
    wrong = cli(*score)
    assert wrong.exit_code == 2
    assert "(their own weights) give other numbers than in the fit (weights other)" in wrong.stderr


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("warmth", "reward.weights: warmth has no settings"),
        ("warmth + brightness", "--weights: they are one reward's"),
        ("preference", "reward.weights: unknown key for preference"),
    ],
)
def test_weights_for_what_has_none(cli: Cli, rated: Path, reward: str, message: str):
    result = cli("reward", "score", str(rated), "--reward", reward, "--weights", "folder")
    assert result.exit_code == 2
    assert message in result.stderr
