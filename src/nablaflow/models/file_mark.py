"""What tells a model's folder from any other, whatever its name, without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nablaflow import nano
from nablaflow.models.folder import files_of
from nablaflow.places import at_home

PREFIX = "files:"
"""Before such a mark, which is of other make than a hash of all weights."""
PIECES, SIZE = 64, 4096  # bytes of a file that are looked at, evenly spread


def mark_of_files(model: str) -> str | None:
    """A hash of the sizes of a model's files and of pieces of them; None for one without a path.

    Weights that were trained differ in every piece, so that a few are enough; a copy has the same
    mark, and the folder saved once more in other shards another.

    Args:
        model: as a configuration has it.

    Raises:
        UserError: it is a folder without a pipeline.
    """
    place = at_home(model)
    if model in nano.MODELS or not place.exists():
        return None
    digest = hashlib.sha256()
    files = [place] if place.is_file() else files_of(place)
    for file in sorted(files):
        name = "" if file == place else file.relative_to(place).as_posix()
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        digest.update(_pieces(file))
    return f"{PREFIX}{digest.hexdigest()[:24]}"


def _pieces(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= PIECES * SIZE:
            return opened.read()
        found = b""
        for piece in range(PIECES):
            opened.seek(piece * (size - SIZE) // (PIECES - 1))
            found += opened.read(SIZE)
    return found
