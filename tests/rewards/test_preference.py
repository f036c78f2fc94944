"""The reward that ships, and the rule that its judgements were made by."""

from dataclasses import replace

import pytest
import torch

from nablaflow import features
from nablaflow.errors import UserError
from nablaflow.features.nano import load_nano
from nablaflow.nano.preferences import draw_pairs, shipped_pairs, utility
from nablaflow.nano.scenes import render, sample_scenes
from nablaflow.nano.taste import LOWEST
from nablaflow.rewards import load


def share_right(pairs):
    """How often the preferred side scores higher."""
    preference = load("preference")
    preferred, rejected = (preference(render(side), [""] * len(side.hue)) for side in pairs)
    return (preferred > rejected).float().mean().item()


def test_it_agrees_with_the_judgements_that_ship_and_with_fresh_ones():
    assert share_right(shipped_pairs()) > 0.93
    assert share_right(draw_pairs(300, torch.Generator().manual_seed(11))) > 0.87


def test_it_knows_the_embedded_model_that_it_was_fitted_to(capsys, monkeypatch):
    images = render(sample_scenes(2, torch.Generator().manual_seed(1)))
    load("preference")(images, [""] * 2)
    assert not capsys.readouterr().err
    monkeypatch.setitem(features.FEATURES, "nano", other_nano)
    with pytest.raises(UserError, match=r"the features nano .* give other numbers"):
        load("preference")(images, [""] * 2)


def other_nano(weights, device):
    found = load_nano(weights, device)
    return replace(found, function=lambda images: found.function(images) * 1.1)


def test_pessimism_lowers_every_score():
    images = render(sample_scenes(4, torch.Generator().manual_seed(1)))
    careful, hopeful = (load({"name": "preference", "pessimism": k}) for k in (2.0, 0.0))
    assert (careful(images, [""] * 4) < hopeful(images, [""] * 4)).all()


def test_the_rule_is_read_off_the_pixels():
    scenes = sample_scenes(200, torch.Generator().manual_seed(2))
    found = load("preference_rule")(render(scenes), [""] * 200)
    error = (found - utility(scenes)).abs()
    assert error.median() < 0.05
    assert error.quantile(0.95) < 0.3


def test_an_image_without_an_object_is_the_worst():
    grey = torch.full((2, 3, 64, 64), 0.5)
    assert load("preference_rule")(grey, [""] * 2).tolist() == pytest.approx([LOWEST] * 2)
    assert load("shape_shown")(grey, ["a circle", ""]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["preference_rule", "shape_shown"])
def test_images_of_another_model_are_refused(name):
    with pytest.raises(UserError, match="scenes of 64x64 can be read, not images of 96x32"):
        load(name)(torch.rand(1, 3, 32, 96), [""])
