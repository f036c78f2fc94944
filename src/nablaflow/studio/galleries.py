"""A run's gallery as the page shows it: positions between the reference and what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nablaflow.storage import checksums
from nablaflow.storage.gallery import GALLERY
from nablaflow.studio.data import number, text_of
from nablaflow.studio.folders import address, image_address, images_of

PLACE = "galleries"  # below the page's own folder


def place_of(root: Path, run: Path) -> Path:
    """Where the page draws the gallery of a run."""
    return place_named(root / PLACE, run)


def place_named(folder: Path, run: Path) -> Path:
    """A place of a run's own in a folder, by a name that any file system takes."""
    words = "".join(c if c.isalnum() else "-" for c in run.name)[:40]
    return folder / f"{words or 'run'}-{address(run)[:6]}"


def read_gallery(folder: Path) -> Mapping[str, Any] | None:
    """Positions with their images and what those score; None where there is no whole gallery.

    A position whose images are not all there is left out.
    """
    try:
        table = checksums.checked(text_of(folder / GALLERY) or "{}")
    except ValueError:
        return None
    prompts, rows = table.get("prompts"), table.get("positions")
    if not isinstance(prompts, list) or not isinstance(rows, list):
        return None
    texts = [str(prompt) for prompt in prompts]
    found = [_position(folder, row, len(texts)) for row in rows]
    whole = [position for position in found if position is not None]
    return {"prompts": texts, "positions": whole} if whole else None


def _position(folder: Path, row: Any, n: int) -> Mapping[str, Any] | None:
    if not isinstance(row, dict) or not isinstance(row.get("folder"), str):
        return None
    place = next((path for path in _below(folder) if path.name == row["folder"]), None)
    images = images_of(place) if place is not None else ()
    if place is None or len(images) != n:
        return None
    return {
        "name": place.name,
        "address": address(place),
        "checkpoint": str(row.get("checkpoint")),
        "strength": number(row, "strength"),
        "images": [image_address(image) for image in images],
        "rewards": _figures(row.get("rewards"), n),
        "distances": _figures(row.get("distances"), n),
    }


def _below(folder: Path) -> Sequence[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]


def _figures(values: Any, n: int) -> list[float | None]:
    """A number for each image; none where there is none."""
    if not isinstance(values, list) or len(values) != n:
        return [None] * n
    return [number({"value": value}, "value") for value in values]
