"""How extractors are found, and what all of them promise."""

import pytest
import torch

from nablaflow import features
from nablaflow.errors import UserError
from tests.support.slopes import assert_slope

SHIPPED = ["nano", "pixels"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_vector_of_the_stated_length_for_every_image(name, images):
    extractor = features.load(name)
    found = extractor(images)
    assert extractor.name == name
    assert found.shape == (3, extractor.dim)
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize("name", SHIPPED)
def test_each_image_has_its_own_features(name, images):
    extractor = features.load(name)
    together = extractor(images)
    alone = torch.cat([extractor(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHIPPED)
def test_gradient_to_the_pixels_is_the_finite_difference(name, images):
    extractor = features.load(name)
    weights = torch.randn(extractor.dim, generator=torch.Generator().manual_seed(1))
    assert_slope(lambda x: (extractor(x) @ weights).sum(), images)


@pytest.mark.parametrize("name", SHIPPED)
def test_half_precision_and_autocast_leave_float32_inside(name, images):
    extractor = features.load(name)
    coarse = images.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extractor(coarse)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, extractor(coarse.float()), rtol=0, atol=0)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="unknown features 'pixel': did you mean pixels"):
        features.load("pixel")


def test_pixels_have_no_weights():
    with pytest.raises(UserError, match="features pixels: they have no weights"):
        features.load("pixels", weights="somewhere")
