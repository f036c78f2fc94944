"""Preprocessing against Pillow and transformers' image processor, and its gradient."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nablaflow.rewards.preprocess import CLIP_MEAN, CLIP_STD, Preprocess

LEVEL = 1 / 255


def picture(height: int, width: int) -> np.ndarray:
    """Edges, noise and a ramp, 8 bits: what makes a bicubic filter overshoot."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3))
    image[: height // 2] = 255 * (np.arange(width) // 5 % 2)[None, :, None]
    image[-height // 4 :, :, 0] = np.linspace(0, 255, width)[None]
    return image.astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (224, 224), (512, 512), (300, 451), (97, 64)]
)
def test_it_is_what_the_image_processor_does(height, width):
    image = picture(height, width)
    processor = CLIPImageProcessorPil()
    wanted = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values
    found = Preprocess(224)(tensor(image))
    assert found.shape == wanted.shape
    # Pillow rounds to 8 bits after each of its two passes; the mean must not be biased by that.
    std = torch.tensor(CLIP_STD)[:, None, None]
    off = (found - wanted) * std / LEVEL
    assert off.abs().max() < 1.6
    assert off.abs().mean() < 0.5
    assert off.mean().abs() < 0.02


def test_an_odd_crop_starts_where_torchvision_starts():
    image = torch.rand(1, 3, 8, 15, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    plain = (image - mean) / std
    # 7 spare columns: 3.5 rounds down to 3, or to the even 4.
    assert torch.equal(Preprocess(8)(image), plain[..., 3:11])
    assert torch.equal(Preprocess(8, odd_crop="even")(image), plain[..., 4:12])


def test_its_gradient_is_that_of_a_finite_difference():
    images = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(1)).double()
    images = (0.3 + 0.4 * images).requires_grad_()
    assert torch.autograd.gradcheck(Preprocess(4), images)
    assert torch.autograd.gradcheck(Preprocess(12), images)
