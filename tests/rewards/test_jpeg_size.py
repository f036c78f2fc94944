"""The size of a JPEG, against files that Pillow writes and reads back."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from nablaflow.rewards import REWARDS

LEVELS = np.random.default_rng(0).integers(0, 256, size=(32, 40, 3), dtype=np.uint8)


def images(levels):
    return torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255


def size(levels):
    buffer = BytesIO()
    Image.fromarray(levels).save(buffer, format="JPEG", quality=95)
    return len(buffer.getvalue())


def test_kilobytes_of_the_file_in_both_directions():
    busy = REWARDS["jpeg_incompressibility"](images(LEVELS), [""]).item()
    plain = REWARDS["jpeg_compressibility"](images(LEVELS), [""]).item()
    assert busy == pytest.approx(size(LEVELS) / 1000, rel=1e-6)
    assert plain == -busy


def test_noise_is_larger_than_flat():
    flat = np.full_like(LEVELS, 128)
    batch = torch.cat([images(LEVELS), images(flat)])
    noisy, grey = REWARDS["jpeg_incompressibility"](batch, ["", ""]).tolist()
    assert noisy > 2 * grey


def test_values_outside_the_range_are_clamped():
    white = torch.ones(1, 3, 16, 16)
    reward = REWARDS["jpeg_compressibility"]
    assert torch.equal(reward(white, [""]), reward(1.5 * white, [""]))


def test_images_that_need_a_gradient_are_accepted_and_cut_off():
    leaf = images(LEVELS).requires_grad_()
    scores = REWARDS["jpeg_compressibility"](leaf, [""])
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
