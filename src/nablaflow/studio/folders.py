"""What the page shows: run folders and folders of images, found below one folder.

A folder's address in the page is a hash of its path, and a file's is its place in a listing, so no
text from a browser or from a run folder ever becomes a path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nablaflow.fitting.images import SUFFIXES
from nablaflow.storage.lock import is_run

DEPTH = 4
_SAMPLE = re.compile(r"\d{4,}-(.+)\.png")
SHEET = "sheet.png"  # what older versions of `sample` wrote beside its images


@dataclass(frozen=True)
class Folders:
    """Folders by their address, in the order of their paths."""

    runs: dict[str, Path]
    images: dict[str, Path]


def address(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]


def find(root: Path) -> Folders:
    """Run folders, and folders with images that belong to no run, ``DEPTH`` below a root."""
    runs: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for folder in _folders(root, DEPTH):
        if is_run(folder):
            runs[address(folder)] = folder
        elif images_of(folder):
            images[address(folder)] = folder
    return Folders(runs, images)


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """A folder and those below it, none inside a run, none behind a link."""
    yield folder
    if depth == 0 or is_run(folder):
        return
    try:
        inside = sorted(Path(entry) for entry in os.scandir(folder) if _is_folder(entry))
    except OSError:  # it may not be read, or is gone
        return
    for below in inside:
        yield from _folders(below, depth - 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def is_image(path: Path) -> bool:
    """Whether it is a picture file itself, and not a link to one elsewhere."""
    named = path.suffix.lower() in SUFFIXES and path.name.isprintable()
    return named and path.is_file() and not path.is_symlink()


def prompt_of(image: Path) -> str:
    """The prompt as `nablaflow sample` writes it into an image's name; else no text."""
    found = _SAMPLE.fullmatch(image.name)
    return found[1].replace("-", " ") if found else ""


def images_of(folder: Path) -> list[Path]:
    """The images of a folder by name; none where the folder is gone."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in found if is_image(path) and not _beside_others(path)]


def _beside_others(path: Path) -> bool:
    """Whether it is a picture of something else there: a sheet of all, or of a fitted reward."""
    return path.name == SHEET or path.with_suffix(".safetensors").exists()
