"""Pooled pixels."""

import torch

from nablaflow.features import pooled_pixels


def test_one_cell_is_the_mean_colour():
    images = torch.rand(3, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled_pixels(images, size=1), images.mean((2, 3)))


def test_a_cell_sees_only_its_own_pixels():
    images = torch.zeros(1, 3, 64, 64)
    images[0, 1, 8:16, 56:64] = 1.0  # green; second row of cells, last column
    features = pooled_pixels(images).reshape(3, 8, 8)
    assert features.shape == (3, 8, 8)
    assert features[1, 1, 7] == 1.0
    assert features.sum() == 1.0


def test_half_precision_images_are_averaged_in_float32():
    images = torch.full((2, 3, 64, 64), 0.1, dtype=torch.bfloat16)
    assert pooled_pixels(images).dtype == torch.float32
