"""The name that a run has for itself, which its checkpoints have as well.

Two runs of one recipe differ in nothing that their files would tell, so each is given a name of
its own when it is begun, and a checkpoint that was copied from the one to the other is known.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from nablaflow.storage import checksums
from nablaflow.storage.files import read_text, write_whole
from nablaflow.storage.run_folder import NAME

KEY = "run"


def name_of(run: Path) -> str | None:
    """The name of the run in a folder; None: it was begun by an earlier version, or is damaged."""
    try:
        return str(checksums.unseal(read_text(run / NAME))[KEY])
    except (OSError, ValueError, KeyError, RecursionError):
        return None


def keep_name(run: Path, known: str | None) -> None:
    """Give a run its name, if it has none.

    Args:
        known: by which its checkpoints know it; None: they know none.

    Raises:
        OSError: it cannot be written.
    """
    if name_of(run) is None:
        write_whole(run / NAME, checksums.sealed({KEY: known or secrets.token_hex(8)}))
