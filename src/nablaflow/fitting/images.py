"""Image files to tensors and to features, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from nablaflow.errors import UserError
from nablaflow.features import FeatureExtractor
from nablaflow.typing import Features, Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
BATCH = 16


def read_image(path: Path) -> Images:
    """One image, (1, 3, h, w) in [0, 1], turned as its camera says.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not an image that can be decoded; leave it out") from error
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return pixels[None].float() / 255


def list_images(folder: Path) -> list[Path]:
    """The images of a folder by name, subfolders not included.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with images in it")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{folder}: holds no image; known are {', '.join(SUFFIXES)}")
    return found


def batches(paths: Sequence[Path]) -> Iterator[Images]:
    """Batches of neighbours of one size, in order; no image is resized."""
    for start in range(0, len(paths), BATCH):
        images = [read_image(path) for path in paths[start : start + BATCH]]
        for _, group in groupby(images, key=lambda image: image.shape):
            yield torch.cat(list(group))


@torch.no_grad()
def image_features(
    paths: Sequence[Path], extractor: FeatureExtractor, on_progress: Callable[[int], None]
) -> Features:
    """Features (image, d) of files, on the processor; told how many more images are done."""
    parts = []
    for images in batches(paths):
        parts.append(extractor(images).cpu())
        on_progress(len(images))
    return torch.cat(parts)
