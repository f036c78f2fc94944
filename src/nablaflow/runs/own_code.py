"""The files of the user's own code that a run is trained with, known again by their checksums.

A run may go on after its reward was mended, so another file is no mistake; that the figures before
and after are of two functions is said.
"""

from __future__ import annotations

import json
from pathlib import Path

from nablaflow.config.recipe import Config
from nablaflow.rewards.references import CODE
from nablaflow.runs.trust import asked_for
from nablaflow.storage import checksums
from nablaflow.storage.files import read_text, write_whole
from nablaflow.storage.run_folder import CODE_FILES


def told_of_code(config: Config, folder: Path, update: int) -> list[str]:
    """Lines about code that is not what the run had before; what there is now is kept.

    Args:
        folder: of the run.
        update: that it is at.
    """
    now = {
        part.name: checksums.of_file(part.path)
        for part in asked_for(config)
        if part.kind == CODE and part.path is not None and part.path.is_file()
    }
    kept = folder / CODE_FILES
    try:
        before = dict(json.loads(read_text(kept))) if kept.is_file() else {}
    except (OSError, ValueError, TypeError):
        before = dict.fromkeys(now)  # so that none of them is taken for the same
    changed = [name for name, mark in now.items() if before.get(name, mark) != mark]
    if now:
        write_whole(kept, json.dumps(now, indent=1))
    return [
        f"{name}: its file is not what the run had before; from update {update} on it is trained "
        "with what is there now"
        for name in changed
    ]
