"""What tells a model from any other, whatever its name, without reading all of it.

An embedded model is a folder too: a later version of the package may have another of its name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from nablaflow import nano
from nablaflow.models.folder import files_of
from nablaflow.models.from_hub import at_revision, commit_on_hub, is_hub_id
from nablaflow.places import at_home

FILES, COMMIT = "files:", "commit:"
"""Before such a mark, which is of other make than a hash of all weights."""
PIECES, SIZE = 64, 4096  # bytes of a file that are looked at, evenly spread


def mark_of_files(model: str) -> str | None:
    """Of a folder or a file a hash of sizes and of pieces; of what is on the hub its commit.

    Weights that were trained differ in every piece, so that a few are enough; a copy has the same
    mark, and the folder saved once more in other shards another.

    Args:
        model: as a configuration has it.

    Returns:
        None for a model that is nowhere, or of random weights.

    Raises:
        UserError: it is a folder without a pipeline, or the hub has none of that name.
    """
    place = place_of(model)
    if not place.exists():
        return f"{COMMIT}{commit_on_hub(model)}" if is_hub_id(model) else None
    digest = hashlib.sha256()
    files = [place] if place.is_file() else files_of(place)
    for file in sorted(files):
        name = "" if file == place else file.relative_to(place).as_posix()
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        digest.update(_pieces(file))
    return f"{FILES}{digest.hexdigest()[:24]}"


def place_of(model: str) -> Path:
    """Where a model is, if it is on this machine; an embedded one is in the package."""
    return nano.path(model) if model in nano.MODELS else at_home(model)


def is_of_files(mark: str | None) -> bool:
    """Whether a ``model_hash`` is such a mark, which another place of the model may have."""
    return mark is not None and mark.startswith((FILES, COMMIT))


def pinned(model: str, mark: str | None) -> str:
    """A hub id at the commit that its mark has: a branch or a tag may be at another by now."""
    if mark is None or not mark.startswith(COMMIT) or at_home(model).exists():
        return model
    return f"{at_revision(model)[0]}@{mark.removeprefix(COMMIT)}"


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
