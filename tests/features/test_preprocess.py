"""Resizing and cropping, against PIL."""

import numpy as np
import pytest
import torch
from PIL import Image

from nablaflow.features.preprocess import normalize, resize, square


@pytest.mark.parametrize("size", [(20, 28), (64, 80)])
def test_resizing_is_that_of_pil(images, size):
    ours = resize(images, *size)
    channel = Image.fromarray(images[0, 1].numpy(), mode="F")
    theirs = channel.resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_allclose(ours[0, 1], np.asarray(theirs).clip(0, 1), atol=2e-3)


def test_images_of_the_right_size_pass_untouched(images):
    assert resize(images, 40, 56) is images


def test_the_middle_square_is_kept(images):
    torch.testing.assert_close(square(images, 40), images[..., 8:48])
    assert square(images, 32, shorter=36).shape == (3, 3, 32, 32)


def test_normalizing_is_by_channel(images):
    found = normalize(images, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    torch.testing.assert_close(found[:, 2], (images[:, 2] - 0.3) / 4.0)
