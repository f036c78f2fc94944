"""The figures of the model card, on samplers whose quality is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.nano.quality import (
    autoencoder_psnr,
    color_fits,
    free_variation,
    histograms,
    named_accuracy,
    word_accuracy,
)
from nablaflow.nano.scenes import COLORS, SHAPES, Scenes, render, sample_scenes

SAMPLING = {"steps": 2, "eta": 1.0, "guidance": 1.0, "seed": 0}
Change = Callable[[Scenes], Scenes]


class Draws:
    """A pipeline that draws true scenes: what its prompts name, and the rest as they come."""

    def __init__(self, change: Change = lambda scenes: scenes) -> None:
        self.change = change
        self.generator = torch.Generator().manual_seed(8)

    def set_progress_bar_config(self, **_: Any) -> None: ...

    def __call__(self, prompts: list[str], **_: Any) -> SimpleNamespace:
        scenes = sample_scenes(len(prompts), self.generator)
        shape, hue = scenes.shape.clone(), scenes.hue.clone()
        for row, words in enumerate(prompt.split() for prompt in prompts):
            for word in words:
                if word in SHAPES:
                    shape[row] = SHAPES.index(word)
                if word in COLORS:
                    low, high = COLORS[word]
                    hue[row] = (low + (high - low) * scenes.hue[row]) % 1.0
        return SimpleNamespace(images=render(self.change(replace(scenes, shape=shape, hue=hue))))


def test_a_perfect_model_shows_what_is_named():
    assert named_accuracy(Draws(), 96, **SAMPLING) == 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, shape=(s.shape + 1) % len(SHAPES)),
        lambda s: replace(s, hue=(s.hue + 0.5) % 1.0),
    ],
    ids=["wrong shape", "wrong colour"],
)
def test_a_model_that_shows_something_else_is_found_out(change: Change):
    assert named_accuracy(Draws(change), 96, **SAMPLING) == 0.0


def test_half_wrong_is_half_right():
    def half(scenes: Scenes) -> Scenes:
        shape = scenes.shape.clone()
        shape[::2] = (shape[::2] + 1) % len(SHAPES)
        return replace(scenes, shape=shape)

    assert named_accuracy(Draws(half), 100, **SAMPLING) == 0.5


PLACES = {  # a value for each word that only word_accuracy asks for
    "small": {"radius": 10.0},
    "large": {"radius": 16.0},
    "left": {"x": 0.2},
    "right": {"x": 0.8},
    "top": {"y": 0.2},
    "bottom": {"y": 0.8},
    "dark": {"shade": 0.2},
    "light": {"shade": 0.8},
}


class Obeys(Draws):
    """Draws every word besides; of the attribute it is ``deaf`` to, always the first one."""

    def __init__(self, deaf: str = "") -> None:
        super().__init__()
        self.deaf = deaf

    def __call__(self, prompts: list[str], **_: Any) -> SimpleNamespace:
        scenes = sample_scenes(len(prompts), self.generator)
        for row, prompt in enumerate(prompts):
            for word in set(prompt.split()) & PLACES.keys():
                for name, value in PLACES[word].items():
                    getattr(scenes, name)[row] = 0.2 if name == self.deaf else value
        return SimpleNamespace(images=render(scenes))


def test_words_that_are_shown_and_a_word_that_is_ignored():
    assert set(word_accuracy(Obeys(), 40, **SAMPLING).values()) == {1.0}
    found = word_accuracy(Obeys(deaf="x"), 40, **SAMPLING)
    assert found == {"size": 1.0, "x": 0.5, "y": 1.0, "shade": 1.0}


def test_the_scenes_own_variation_is_within_the_noise_of_counting():
    variation = free_variation(Draws(), 600, **SAMPLING)
    assert set(variation) == {"shape", "hue", "x", "y", "radius", "shade"}
    # 600 draws in 8 equal bins: the expected total variation is about 0.045.
    assert max(variation.values()) < 0.1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hue", lambda s: replace(s, hue=torch.zeros_like(s.hue) + 0.02)),
        ("x", lambda s: replace(s, x=s.x / 2)),
        ("y", lambda s: replace(s, y=s.y / 2)),
        ("radius", lambda s: replace(s, radius=13.0 + (s.radius - 13.0) / 2)),
        ("shade", lambda s: replace(s, shade=0.08 + (s.shade - 0.08) / 2)),
    ],
)
def test_an_attribute_that_has_collapsed_is_found_out(name: str, change: Change):
    variation = free_variation(Draws(change), 200, **SAMPLING)
    wanted = 7 / 8 if name == "hue" else 1 / 2  # mass moved, of 8 equal bins
    assert variation.pop(name) == pytest.approx(wanted, abs=0.12)
    assert max(variation.values()) < 0.2, "the others are as they were"


def test_histograms_are_shares():
    for values in histograms(sample_scenes(500, torch.Generator().manual_seed(0))).values():
        assert float(values.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("hue", "color", "fits"),
    [
        (0.0, "red", True),
        (0.97, "red", True),  # around the end of the circle
        (0.05, "red", True),  # within the tolerance of 0.02
        (0.07, "red", False),
        (0.93, "red", False),
        (0.5, "cyan", True),
        (0.3, "cyan", False),
    ],
)
def test_a_colour_fits_its_sector_and_a_little_more(hue: float, color: str, fits: bool):
    assert bool(color_fits(torch.tensor(hue), color)) is fits


class AddsNoise:
    """An autoencoder whose error is known: decoding shifts every pixel by ``shift``."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def encode(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=images))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents + 2 * self.shift)  # in [-1, 1] units


@pytest.mark.parametrize(("shift", "decibel"), [(0.01, 40.0), (-0.03, 30.457575)])
def test_psnr_is_that_of_a_known_error(shift: float, decibel: float):
    assert autoencoder_psnr(AddsNoise(shift), 120, seed=0) == pytest.approx(decibel, abs=0.01)
