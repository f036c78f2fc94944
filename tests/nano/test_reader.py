"""The reader finds the attributes of drawn scenes, and no object where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nablaflow.nano.reader import Reading, read
from nablaflow.nano.scenes import Scenes, render


@pytest.fixture(scope="module")
def reading(images: Tensor) -> Reading:
    return read(images)


def test_every_shape_is_recognised(reading: Reading, scenes: Scenes):
    assert torch.equal(reading.scenes.shape, scenes.shape)


@pytest.mark.parametrize(
    ("name", "typical", "largest"),
    [
        ("x", 0.01, 0.05),
        ("y", 0.01, 0.05),
        ("radius", 0.1, 0.5),  # pixels
        ("shade", 1e-4, 1e-2),
    ],
)
def test_attributes_are_read_closely(
    reading: Reading, scenes: Scenes, name: str, typical: float, largest: float
):
    error = (getattr(reading.scenes, name) - getattr(scenes, name)).abs()
    assert error.mean() < typical
    assert error.max() < largest


def test_hue_is_read_closely_around_the_circle(reading: Reading, scenes: Scenes):
    offset = (reading.scenes.hue - scenes.hue + 0.5) % 1.0 - 0.5
    # Hue in the hexagon of HSV and as an angle differ by at most 1.2 degrees.
    assert offset.abs().max() < 0.004


def test_clean_objects_overlap_with_their_ideal(reading: Reading):
    assert reading.overlap.min() > 0.9


def test_noise_has_no_clean_object():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(50, 3, 8, 8, generator=generator)
    clouds = functional.interpolate(coarse, (64, 64), mode="bilinear")
    assert read(torch.rand(50, 3, 64, 64, generator=generator)).overlap.max() < 0.7
    assert read(clouds).overlap.median() < 0.7


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_empty_picture_has_no_clean_object(level: float):
    assert read(torch.full((2, 3, 64, 64), level)).overlap.max() < 0.7


def test_two_objects_are_not_one(scenes: Scenes):
    left = render(replace(scenes, x=torch.zeros(400), shade=torch.zeros(400)))
    right = render(replace(scenes, x=torch.ones(400), shade=torch.zeros(400)))
    assert read(torch.maximum(left, right)).overlap.median() < 0.7


def test_faint_pixel_noise_does_not_matter(images: Tensor, scenes: Scenes):
    noise = 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = read((images + noise).clamp(0.0, 1.0))
    assert (found.scenes.shape == scenes.shape).float().mean() > 0.99
    assert (found.scenes.radius - scenes.radius).abs().mean() < 0.3
    assert found.overlap.min() > 0.8


def test_the_mirror_image_is_read_mirrored(images: Tensor, scenes: Scenes, reading: Reading):
    mirrored = read(images.flip(-1))
    torch.testing.assert_close(mirrored.scenes.x, 1.0 - reading.scenes.x, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(mirrored.scenes.y, reading.scenes.y, rtol=0.0, atol=1e-3)
    assert torch.equal(mirrored.scenes.shape, scenes.shape)
