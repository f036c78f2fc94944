"""From a folder to a reward: held-out accuracy, the file and its card, units."""

import math

import pytest
import torch
from PIL import Image

from nablaflow import features
from nablaflow.errors import UserError
from nablaflow.fitting import HeadSettings, check_out, fit_folder, save, score_folder
from nablaflow.nano.judged import write_judged
from nablaflow.nano.preferences import draw_pairs, shipped_pairs, utility
from nablaflow.rewards import load
from nablaflow.rewards.heads import read_heads

QUICK = HeadSettings(members=3, steps=150, learning_rate=0.02)


@pytest.fixture
def rated(tmp_path):
    """Grey levels, rated ten times their level; of two sizes."""
    lines = ["image,score"]
    for n in range(30):
        size = (8, 8) if n % 3 else (16, 24)
        Image.new("RGB", size, (8 * n,) * 3).save(tmp_path / f"{n}.png")
        lines.append(f"{n}.png,{10 * 8 * n / 255}")
    (tmp_path / "ratings.csv").write_text("\n".join(lines))
    return tmp_path


def test_ratings_come_back_in_their_own_unit(rated, tmp_path):
    out = tmp_path / "grey.safetensors"
    found = fit_folder(rated, "pixels", QUICK, seed=1)
    card = save(found, out)
    images = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 8, 8)
    torch.testing.assert_close(
        load(str(out))(images, ["", ""]), torch.tensor([2.0, 8.0]), atol=0.5, rtol=0
    )
    assert found.about["held_out"]["accuracy"] > 0.95
    assert found.about["held_out"]["r2"] > 0.9
    assert "30 ratings of 30 images" in card.read_text()
    assert "`pixels`, frozen, with their own weights" in card.read_text()
    _, about = read_heads(out)
    assert about["weights"] is None
    assert about["fingerprint"] == features.fingerprint(features.load("pixels"))
    assert sorted(p.name for p in tmp_path.iterdir() if "grey" in p.name) == [
        "grey.md",
        "grey.safetensors",
    ]


@pytest.mark.parametrize("rare", [2, 3])
def test_every_figure_is_a_number_where_one_rating_is_rare(rated, rare):
    lines = [f"{n}.png,{int(n < rare)}" for n in range(30)]
    (rated / "ratings.csv").write_text("\n".join(["image,score", *lines]))
    for seed in range(3):
        about = fit_folder(rated, "pixels", QUICK, seed=seed).about
        assert about["folds"] == rare
        assert all(math.isfinite(figure) for figure in about["held_out"].values())


def test_the_same_seed_gives_the_same_heads(rated):
    one, again = (fit_folder(rated, "pixels", QUICK, seed=3).heads.direct for _ in range(2))
    assert one.equal(again)


def test_an_image_that_cannot_be_decoded_stops_it(rated):
    (rated / "3.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"3\.png: not an image that can be decoded"):
        fit_folder(rated, "pixels", QUICK)


def test_broken_images_stop_it_before_any_features(rated, monkeypatch):
    for name in ("3.png", "29.png"):
        (rated / name).write_bytes(b"nothing")

    def load(*given, **settings):
        raise AssertionError("the features are loaded before the images are known to be whole")

    monkeypatch.setattr("nablaflow.features.load", load)
    with pytest.raises(UserError, match=r"2 images cannot be used: .*3\.png.*29\.png"):
        fit_folder(rated, "pixels", QUICK)
    with pytest.raises(UserError, match="did you mean pixels"):
        fit_folder(rated, "pixel", QUICK)


def test_broken_images_stop_scores_before_the_first(rated):
    (rated / "9.png").write_bytes(b"nothing")

    def reward(images, prompts):
        raise AssertionError("scored before all images are known to be whole")

    with pytest.raises(UserError, match=r"9\.png: not an image that can be decoded"):
        score_folder(rated, load(reward), "", lambda what, total: lambda done: None)


def test_scores_are_sorted_and_have_an_uncertainty(rated, tmp_path):
    out = tmp_path / "grey.safetensors"
    save(fit_folder(rated, "pixels", QUICK, pessimism=1.0), out)
    ticks = []
    rows = score_folder(rated, load(str(out)), "", lambda what, total: ticks.append)
    assert len(rows) == 30
    assert sum(ticks) == 2 * 30  # checked, then scored
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    assert rows[0].image.name in ("29.png", "28.png", "27.png")
    assert all(row.uncertainty is not None and row.uncertainty > 0 for row in rows)
    plain = score_folder(rated, load("brightness"), "", lambda what, total: ticks.append)
    assert all(row.uncertainty is None for row in plain)
    assert plain[0].score == pytest.approx(8 * 29 / 255, abs=1e-6)


def test_where_a_reward_may_be_written(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        check_out(tmp_path / "reward.pt", overwrite=False)
    with pytest.raises(UserError, match="there is no folder"):
        check_out(tmp_path / "none" / "r.safetensors", overwrite=False)
    check_out(tmp_path / "r.safetensors", overwrite=False)


@pytest.mark.parametrize("suffix", ["safetensors", "md", "png"])
def test_none_of_the_three_files_is_replaced_unasked(tmp_path, suffix):
    out = tmp_path / "r.safetensors"
    there = tmp_path / f"r.{suffix}"
    there.touch()
    with pytest.raises(UserError, match=rf"there already: \S+r\.{suffix}; use --overwrite"):
        check_out(out, overwrite=False)
    check_out(out, overwrite=True)
    there.unlink()
    there.mkdir()
    with pytest.raises(UserError, match=rf"r\.{suffix} is a folder; use another name"):
        check_out(out, overwrite=True)


def test_few_of_the_shipped_pairs_go_against_the_rule():
    preferred, rejected = shipped_pairs()
    assert len(preferred) == len(rejected) == 200
    against = (utility(preferred) < utility(rejected)).float().mean()
    assert 0 < against < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_two_hundred_pairs_are_enough_for_nine_in_ten(tmp_path, seed):
    write_judged(tmp_path, draw_pairs(200, torch.Generator().manual_seed(seed)))
    found = fit_folder(tmp_path, "nano", HeadSettings(), seed=seed)
    assert found.about["held_out"]["accuracy"] >= 0.9


def test_accuracy_on_what_was_drawn_at_random_is_told_apart(tmp_path):
    """Random pairs follow grey; those that were picked go against it, so a fit misses them."""
    for n in range(40):
        Image.new("RGB", (8, 8), (6 * n,) * 3).save(tmp_path / f"{n}.png")
    lines = ["preferred,rejected,pick"]
    lines += [f"{n + 10}.png,{n}.png,random" for n in range(30)]
    lines += [f"{n}.png,{n + 1}.png,unsure" for n in range(0, 20, 2)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    held_out = fit_folder(tmp_path, "pixels", QUICK).about["held_out"]
    assert held_out["accuracy_at_random"] == 1.0
    assert held_out["accuracy"] == pytest.approx(0.75)
