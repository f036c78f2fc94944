"""The user's own files that a run is trained with, known again by their checksums.

Code, fitted rewards, prompts. A run may go on after its reward was mended, so another content is no
mistake; that the figures before and after are of two functions, or of other prompts, is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nablaflow.config.recipe import Config
from nablaflow.hub.fetch import WEIGHTS_ENDINGS
from nablaflow.models.file_mark import mark_of_files
from nablaflow.rewards.references import CODE, Reference
from nablaflow.runs.trust import ALL, THE_MODEL, asked_for
from nablaflow.storage import checksums
from nablaflow.storage.files import read_text, write_whole
from nablaflow.storage.run_folder import CODE_FILES

_PARTS = {*ALL} - {*THE_MODEL, "adapter.start"}  # whose checksums config.yaml has
_FILES = "files"


def told_of_code(config: Config, folder: Path, update: int) -> list[str]:
    """Lines about files that are not what the run had before; what there is now is kept.

    Args:
        folder: of the run.
        update: that it is at.
    """
    now = marks(asked_for(config, _PARTS))
    kept = folder / CODE_FILES
    if not now:
        return []
    told = _changes(kept, now, update) if kept.is_file() else []
    write_whole(kept, checksums.sealed({_FILES: now}))
    return told


def marks(parts: Iterable[Reference]) -> dict[str, str | None]:
    """What tells the files among these from others under the same names, by the names."""
    return {
        _file(part): _mark(part.path)
        for part in parts
        if part.path is not None and part.path.is_file()
    }


def _changes(kept: Path, now: dict[str, str | None], update: int) -> list[str]:
    try:
        found = checksums.checked(read_text(kept))
        before = dict(found.get(_FILES, found))  # an earlier version had the names alone
    except (OSError, ValueError, TypeError):
        return [f"{kept}: damaged, so whether {', '.join(now)} is as before cannot be told"]
    return [
        f"{name}: this file is not what the run had before; from update {update} on what is there "
        "now is used"
        for name, mark in now.items()
        if before.get(name, mark) != mark
    ]


def _mark(path: Path) -> str | None:
    """Of weights, which may be gigabytes, as of a model's."""
    is_large = path.suffix in WEIGHTS_ENDINGS
    return mark_of_files(str(path)) if is_large else checksums.of_file(path)


def _file(part: Reference) -> str:
    """Its name as it was written; of code without the function's, so that a file comes once."""
    return part.name.rpartition(":")[0] if part.kind == CODE else part.name
