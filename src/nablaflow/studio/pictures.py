"""Small copies of images for a gallery, made when they are asked for."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from nablaflow.studio.folders import is_image

SIDE = 160  # pixels at most
PIXELS = 2**26  # of an image that is opened; a small file may claim far more


def thumbnail(path: Path) -> bytes:
    """A PNG of at most ``SIDE`` pixels a side; grey where the file is no picture or too large."""
    found = path.stat()
    return _thumbnail(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=20_000)
def _thumbnail(path: Path, changed: int, size: int) -> bytes:
    buffer = io.BytesIO()
    _small(path).save(buffer, "PNG")
    return buffer.getvalue()


def _small(path: Path) -> Image.Image:
    grey = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    if not is_image(path):
        return grey
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > PIXELS:
                return grey
            picture.draft("RGB", (SIDE, SIDE))
            small = picture.convert("RGB")
            small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    except Exception:  # Pillow's decoders raise many kinds for one cause
        return grey
    return small
