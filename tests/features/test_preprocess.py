"""Preprocessing against Pillow and transformers' image processors, and its gradient."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nablaflow.features import dinov2
from nablaflow.features.preprocess import Preprocess, resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def picture(height: int, width: int) -> np.ndarray:
    """Edges, noise and a ramp, 8 bits: what makes a bicubic filter overshoot."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3))
    image[: height // 2] = 255 * (np.arange(width) // 5 % 2)[None, :, None]
    image[-height // 4 :, :, 0] = np.linspace(0, 255, width)[None]
    return image.astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def assert_within_a_level(found: torch.Tensor, wanted: torch.Tensor, std) -> None:
    """Pillow rounds to 8 bits after each of its two passes, halves upwards; 512 to 256 has many."""
    assert found.shape == wanted.shape
    off = (found - wanted) * torch.tensor(std)[:, None, None] * 255
    assert off.abs().max() < 1.1
    assert off.abs().mean() < 0.5
    assert off.mean().abs() < 0.1


# At 320 x 330, 224 / 320 in floats loses the last pixel of the longer side.
SIZES = pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (224, 224), (512, 512), (300, 451), (97, 64), (320, 330)]
)


@SIZES
def test_it_is_what_clips_processor_does(height, width):
    image = picture(height, width)
    wanted = CLIPImageProcessorPil()(images=Image.fromarray(image), return_tensors="pt")
    assert_within_a_level(Preprocess(224)(tensor(image)), wanted.pixel_values, CLIP_STD)


@SIZES
def test_dinov2s_is_what_its_published_processor_does(height, width):
    image = picture(height, width)
    std = [0.229, 0.224, 0.225]
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=std,
    )
    wanted = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values
    assert_within_a_level(dinov2.PREPROCESS(tensor(image)), wanted, std)


@pytest.mark.parametrize(
    ("height", "width", "inner"),
    [(300, 451, (224, 149)), (451, 300, (149, 224)), (224, 224, (224, 224)), (60, 100, (224, 134))],
)
def test_padding_keeps_the_whole_picture_on_black(height, width, inner):
    image = picture(height, width)
    small = Image.fromarray(image).resize(inner, Image.Resampling.BICUBIC)
    left, top = ((224 - side) // 2 for side in inner)
    right, bottom = 224 - inner[0] - left, 224 - inner[1] - top
    wanted = tensor(np.asarray(ImageOps.expand(small, (left, top, right, bottom), fill=0)))
    found = Preprocess(224, fit="pad", **PLAIN)(tensor(image))
    assert_within_a_level(found, wanted, (1.0, 1.0, 1.0))
    black = Preprocess(224, fit="pad")(torch.zeros(1, 3, 10, 20))
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(black, (-mean / std).expand(1, 3, 224, 224))


@pytest.mark.parametrize("size", [(224, 224), (224, 451), (300, 224)])
def test_a_resize_is_that_of_pillow(size):
    image = picture(300, 451)
    wanted = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    assert_within_a_level(resize(tensor(image), *size), tensor(np.asarray(wanted)), (1.0, 1.0, 1.0))


def test_images_of_the_right_size_pass_untouched(images):
    assert resize(images, 40, 56) is images
    assert torch.equal(Preprocess(40, **PLAIN)(images), images[..., 8:48])
    assert torch.equal(Preprocess(32, shorter=40, **PLAIN)(images), images[..., 4:36, 12:44])


def test_an_odd_crop_starts_where_torchvision_starts():
    image = torch.rand(1, 3, 8, 15, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    plain = (image - mean) / std
    # 7 spare columns: 3.5 rounds down to 3, or to the even 4.
    assert torch.equal(Preprocess(8)(image), plain[..., 3:11])
    assert torch.equal(Preprocess(8, odd_crop="even")(image), plain[..., 4:12])


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_its_gradient_is_that_of_a_finite_difference(fit):
    images = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(1)).double()
    images = (0.3 + 0.4 * images).requires_grad_()
    assert torch.autograd.gradcheck(Preprocess(4, fit=fit), images)
    assert torch.autograd.gradcheck(Preprocess(12, fit=fit), images)
