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
from nablaflow.storage.judged import SUFFIXES
from nablaflow.typing import Features, Images

BATCH = 16
NAMED = 3  # of the images that cannot be used; the rest are counted
SIXTEEN_BITS = 2**16 - 1
AS_INTEGERS = ("PNG", "PPM")  # whose 16 bits Pillow gives, or gave, as 32
WITH_ALPHA = ("LA", "PA", "RGBA", "RGBa")
UNKNOWN_RANGE = "its pixels have no known range; save it with 8 or 16 bits a channel"
UNDECODABLE = "not an image that can be decoded; leave it out"


def read_image(path: Path) -> Images:
    """One image, (1, 3, h, w) in [0, 1], turned as its camera says.

    What is transparent lies on white. Sixteen bits are scaled, not cut off; grey becomes RGB.

    Raises:
        UserError: it cannot be decoded, or its pixels are numbers without a range.
    """
    picture = _decoded(path)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in AS_INTEGERS):
        return _sixteen_bits(picture)
    if picture.mode in ("I", "F"):
        raise UserError(f"{path}: {UNKNOWN_RANGE}")
    pixels = torch.from_numpy(np.array(_on_white(picture))).permute(2, 0, 1)
    return pixels[None].float() / 255


def check_images(paths: Sequence[Path], on_progress: Callable[[int], None]) -> None:
    """Read every image once, so that none stops the work halfway.

    Args:
        on_progress: told how many more were read.

    Raises:
        UserError: one line on all that cannot be used; the first few by name.
    """
    wrong: list[str] = []
    for path in paths:
        try:
            read_image(path)
        except UserError as error:
            wrong.append(str(error))
        on_progress(1)
    if len(wrong) == 1:
        raise UserError(wrong[0])
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise UserError(f"{len(wrong)} images cannot be used: {'; '.join(wrong[:NAMED])}{more}")


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
    paths: Sequence[Path],
    extractor: FeatureExtractor,
    on_progress: Callable[[int], None],
    device: str | torch.device = "cpu",
) -> Features:
    """Features (image, d) of files, on the processor; told how many more images are done.

    Args:
        device: that of the extractor's weights.
    """
    parts = []
    for images in batches(paths):
        parts.append(extractor(images.to(device)).cpu())
        on_progress(len(images))
    return torch.cat(parts)


def _decoded(path: Path) -> Image.Image:
    """The picture in memory, in the file's own mode."""
    try:
        with Image.open(path) as file:
            file.load()
            picture = ImageOps.exif_transpose(file)
            picture.format = file.format  # a turned copy has none
    except Exception as error:  # Pillow's decoders raise many kinds for one cause
        raise UserError(f"{path}: {UNDECODABLE}") from error
    return picture


def _sixteen_bits(picture: Image.Image) -> Images:
    """RGB (1, 3, h, w) of a grey picture; its transparent level, if it has one, is white."""
    levels = np.asarray(picture).astype(np.float32)
    levels[levels == picture.info.get("transparency", -1)] = SIXTEEN_BITS
    return torch.from_numpy(levels / SIXTEEN_BITS).expand(1, 3, *levels.shape).clone()


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB of 8 bits; what shows through an alpha channel or a transparent colour is white."""
    if picture.mode not in WITH_ALPHA and "transparency" not in picture.info:
        return picture.convert("RGB")
    over = picture.convert("RGBA")
    white = Image.new("RGBA", over.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, over).convert("RGB")
