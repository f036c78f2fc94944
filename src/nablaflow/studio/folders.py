"""What the page shows: run folders and folders of images, found below one folder.

A folder's address in the page is a hash of its path, and an image's a hash of its name, so no text
from a browser or from a run folder ever becomes a path.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nablaflow.storage.gallery import GALLERY
from nablaflow.storage.judged import SUFFIXES
from nablaflow.storage.lock import is_run

DEPTH = 4
COMPARISONS = "comparisons"  # below the root; what is there are no images to look at
_SAMPLE = re.compile(r"\d{4,}-(.+)\.png")
SHEET = "sheet.png"  # what older versions of `sample` wrote beside its images
SETTLED = 2e9  # nanoseconds after which a folder's time of change tells what is in it


@dataclass(frozen=True)
class Folders:
    """Folders by their address, in the order of their paths.

    Attributes:
        galleries: folders of galleries; the folders with their images are in ``images`` too.
    """

    runs: dict[str, Path]
    images: dict[str, Path]
    galleries: dict[str, Path]


@dataclass(frozen=True)
class Listing:
    """The images of a folder by name, and by their addresses; the folders in it that are shown."""

    paths: tuple[Path, ...]
    by_address: dict[str, Path]
    folders: tuple[Path, ...] = ()


def address(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]


def image_address(image: Path) -> str:
    """Within its folder; it stays when other images come or go."""
    return hashlib.sha256(os.fsencode(image.name)).hexdigest()[:16]


def shown_name(folder: Path, root: Path) -> str:
    """A folder's name below the root, as text that can be shown."""
    name = str(folder.relative_to(root)) if folder != root else folder.name
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def find(root: Path) -> Folders:
    """Run folders, and folders with images that belong to no run, ``DEPTH`` below a root."""
    found = Folders({}, {}, {})
    for folder in _folders(root, DEPTH, root / COMPARISONS):
        if is_run(folder):
            found.runs[address(folder)] = folder
            continue
        if images_of(folder):
            found.images[address(folder)] = folder
        if (folder / GALLERY).is_file():
            found.galleries[address(folder)] = folder
    return found


def _folders(folder: Path, depth: int, but: Path) -> Iterator[Path]:
    """A folder and those below it but one, none inside a run, none behind a link."""
    if folder == but:
        return
    yield folder
    if depth == 0 or is_run(folder):
        return
    for below in listing(folder).folders:
        yield from _folders(below, depth - 1, but)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def prompt_of(image: Path) -> str:
    """The prompt as `nablaflow sample` writes it into an image's name; else no text."""
    found = _SAMPLE.fullmatch(image.name)
    return found[1].replace("-", " ") if found else ""


def images_of(folder: Path) -> tuple[Path, ...]:
    """The images of a folder by name; none where the folder is gone."""
    return listing(folder).paths


def listing(folder: Path) -> Listing:
    """What is in a folder, read again when something was added or removed; nothing if it is gone.

    An image is a picture file itself, no link to one elsewhere, and no picture of something else
    there: a sheet of all, or of a fitted reward.
    """
    try:
        changed = folder.stat().st_mtime_ns
        if time.time_ns() - changed < SETTLED:  # a later change may get the same time
            return _read(folder)
        return _known(folder, changed)
    except OSError:
        return Listing((), {})


@lru_cache(maxsize=1024)
def _known(folder: Path, changed: int) -> Listing:
    return _read(folder)


def _read(folder: Path) -> Listing:
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    files = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    names = sorted(name for name in files if _is_image(name, files))
    paths = tuple(folder / name for name in names)
    folders = tuple(sorted(folder / entry.name for entry in entries if _is_folder(entry)))
    return Listing(paths, {image_address(path): path for path in paths}, folders)


def _is_image(name: str, beside: set[str]) -> bool:
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in SUFFIXES or not name.isprintable() or name == SHEET:
        return False
    return f"{stem}.safetensors" not in beside
