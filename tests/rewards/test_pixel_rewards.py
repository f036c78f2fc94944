"""The rewards that are formulas on pixels, against values worked by hand and finite differences."""

import math

import numpy as np
import pytest
import torch

from nablaflow.rewards import REWARDS
from nablaflow.rewards.pixels import GREY, SMOOTHING, smooth_sqrt

DIFFERENTIABLE = ["brightness", "colorfulness", "contrast", "symmetry", "warmth"]
# Rounding off moves a reward by at most this much.
CLOSE = 2 * SMOOTHING

RED, GREEN, BLUE, CYAN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 1.0)
BLACK, GREY_HALF, WHITE = (0.0,) * 3, (0.5,) * 3, (1.0,) * 3


def strip(*colours):
    """One image, a row of pixels of the given colours: (1, 3, 1, n), float64."""
    return torch.tensor(colours, dtype=torch.float64).T[None, :, None, :]


def solid(colour):
    return strip(colour, colour)


def noise(batch=2, size=4, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(1)
    return low + (high - low) * torch.rand(
        batch, 3, size, size, generator=generator, dtype=torch.float64
    )


def value(name, images):
    return REWARDS[name](images, [""] * len(images)).item()


@pytest.mark.parametrize(
    ("colour", "hue"), [(RED, 0), ((1.0, 1.0, 0.0), 60), (GREEN, 120), (CYAN, 180), (BLUE, 240)]
)
def test_warmth_of_a_pure_colour_is_the_cosine_to_orange_red(colour, hue):
    # Chroma of a pure colour is 1, so the grey level divides by 1.02.
    expected = math.cos(math.radians(hue - 20)) / (1 + GREY)
    assert value("warmth", solid(colour)) == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("colour", [BLACK, GREY_HALF, WHITE])
def test_warmth_and_colorfulness_of_grey_are_zero(colour):
    assert value("warmth", solid(colour)) == pytest.approx(0, abs=1e-12)
    assert value("colorfulness", solid(colour)) == pytest.approx(0, abs=1e-12)


def test_warmth_weighs_pixels_by_chroma():
    # Red of chroma 1 and cyan of chroma 0.5: (cos 20 - 0.5 cos 20) / 2 over (1.5 / 2 + grey).
    image = strip(RED, (0.0, 0.5, 0.5))
    expected = 0.25 * math.cos(math.radians(20)) / (0.75 + GREY)
    assert value("warmth", image) == pytest.approx(expected, abs=CLOSE)


def test_a_tint_of_one_level_stays_near_zero():
    tinted = solid((0.5 + 1 / 255, 0.5, 0.5))
    assert 0 < value("warmth", tinted) < 0.2


def test_warmth_is_within_its_range_and_odd_under_complement():
    images = noise(batch=8)
    warm = REWARDS["warmth"](images, [""] * 8)
    assert warm.abs().max() < 1
    torch.testing.assert_close(REWARDS["warmth"](1 - images, [""] * 8), -warm)


@pytest.mark.parametrize(
    ("colour", "luma"), [(RED, 0.2126), (GREEN, 0.7152), (BLUE, 0.0722), (WHITE, 1.0), (BLACK, 0)]
)
def test_brightness_is_rec_709_luma(colour, luma):
    assert value("brightness", solid(colour)) == pytest.approx(luma, abs=1e-12)


def test_contrast_of_black_and_white():
    assert value("contrast", strip(BLACK, WHITE)) == pytest.approx(0.5, abs=CLOSE)
    # One white pixel in four: sqrt(1/4 * 3/4).
    quarter = strip(BLACK, WHITE, BLACK, BLACK)
    assert value("contrast", quarter) == pytest.approx(math.sqrt(3) / 4, abs=CLOSE)
    assert value("contrast", solid(GREY_HALF)) == pytest.approx(0, abs=1e-12)


def test_symmetry_of_mirrored_and_opposite_halves():
    assert value("symmetry", strip(RED, BLUE, BLUE, RED)) == 1.0
    assert value("symmetry", strip(BLACK, WHITE)) == pytest.approx(0.0, abs=CLOSE)
    # One channel of the three differs, in both pixels.
    assert value("symmetry", strip(BLACK, RED)) == pytest.approx(2 / 3, abs=CLOSE)


def test_colorfulness_worked_by_hand():
    # Red, blue: red-green is (1, 0), yellow-blue (0.5, -1). Means 0.5 and -0.25, deviations 0.5
    # and 0.75: sqrt(0.25 + 0.5625) + 0.3 sqrt(0.25 + 0.0625).
    assert value("colorfulness", strip(RED, BLUE)) == pytest.approx(1.0690934, abs=CLOSE)


def test_colorfulness_follows_the_paper_on_8_bit_images():
    levels = np.random.default_rng(0).integers(0, 256, size=(5, 7, 3))
    red, green, blue = (levels[..., i].astype(float) for i in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    paper = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    images = torch.from_numpy(levels).permute(2, 0, 1)[None] / 255.0
    assert 255 * value("colorfulness", images.double()) == pytest.approx(paper, rel=1e-3)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_mirroring_changes_no_reward(name):
    images = noise()
    scores = REWARDS[name](images, ["", ""])
    torch.testing.assert_close(REWARDS[name](images.flip(-1), ["", ""]), scores)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize(
    "images",
    [
        pytest.param(noise(), id="noise"),
        pytest.param(noise(low=0.5, high=0.5 + 1e-3), id="nearly grey"),
        pytest.param(solid(GREY_HALF), id="grey"),
        pytest.param(solid(BLACK), id="black"),
        pytest.param(strip(RED, CYAN, BLUE), id="pure"),
    ],
)
def test_gradient_agrees_with_finite_differences(name, images):
    def function(x):
        return REWARDS[name](x, [""] * len(x))

    leaf = images.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, leaf, eps=1e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_grey_has_a_finite_gradient(name, dtype):
    leaf = torch.full((2, 3, 4, 4), 0.3, dtype=dtype, requires_grad=True)
    scores = REWARDS[name](leaf, ["", ""])
    assert scores.dtype == dtype
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    assert gradient.isfinite().all()


def test_smooth_sqrt_is_close_to_the_square_root_and_exact_at_zero():
    lengths = torch.logspace(-8, 1, 50, dtype=torch.float64)
    error = smooth_sqrt(lengths.square()) - lengths
    assert (error <= 0).all()
    assert (error >= -SMOOTHING).all()
    assert smooth_sqrt(torch.zeros(1)).item() == 0.0
