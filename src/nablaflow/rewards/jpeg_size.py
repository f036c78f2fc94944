"""How few or how many bytes an image takes as a JPEG; neither reward has a gradient."""

from __future__ import annotations

from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from nablaflow.typing import Batch, Images

QUALITY = 95  # with units of 1,000 bytes, as in the code of DDPO (arXiv 2305.13301)


def jpeg_compressibility(images: Images, prompts: list[str]) -> Batch:
    """Minus the kilobytes (1,000 bytes) of each JPEG: DDPO's reward for plain images."""
    return -jpeg_incompressibility(images, prompts)


def jpeg_incompressibility(images: Images, prompts: list[str]) -> Batch:
    """The kilobytes (1,000 bytes) of each image as a JPEG: DDPO's reward for busy images."""
    levels = (images.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    return images.new_tensor([_kilobytes(level) for level in levels])


def _kilobytes(level: Tensor) -> float:
    """Size of one image, uint8 (3, h, w)."""
    buffer = BytesIO()
    Image.fromarray(level.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=QUALITY)
    return buffer.tell() / 1000
