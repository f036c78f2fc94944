"""Small copies of images for a gallery, made when they are asked for."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

SIDE = 160  # pixels at most
PIXELS = 2**26  # of an image that is opened; a small file may claim far more
AS_THEY_ARE = 2**14  # bytes of a PNG or JPEG that is small enough already
QUALITY = 88
Picture = tuple[bytes, str]
"""Content and its media type."""


def thumbnail(path: Path) -> Picture:
    """At most ``SIDE`` pixels a side; grey where the file is no picture or too large."""
    found = path.stat()
    return _thumbnail(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=20_000)  # of some kilobytes each
def _thumbnail(path: Path, changed: int, size: int) -> Picture:
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > PIXELS:
                return _grey()
            small = max(picture.size) <= SIDE and size <= AS_THEY_ARE
            if small and picture.format in ("PNG", "JPEG"):
                picture.verify()
                return path.read_bytes(), Image.MIME[picture.format]
            return _reduced(picture)
    except Exception:  # Pillow's decoders raise many kinds for one cause
        return _grey()


def _reduced(picture: Image.Image) -> Picture:
    picture.draft("RGB", (SIDE, SIDE))
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return _jpeg(small)


@lru_cache(maxsize=1)
def _grey() -> Picture:
    return _jpeg(Image.new("RGB", (SIDE, SIDE), (128, 128, 128)))


def _jpeg(picture: Image.Image) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue(), "image/jpeg"
