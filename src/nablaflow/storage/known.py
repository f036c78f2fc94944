"""What a run's newest whole checkpoint knows the run's other files by."""

from __future__ import annotations

from pathlib import Path

from nablaflow.storage.checkpoint import (
    LINES,
    NAMED,
    DamagedCheckpoint,
    list_checkpoints,
    read_manifest,
    update_of,
)


def name_in(run: Path) -> str | None:
    """The run's name as its newest whole checkpoint has it; None: none has."""
    return _newest(run, NAMED)


def known_lines(run: Path, most: int | None = None) -> str:
    """The marks of a run's lines as its newest whole checkpoint has them; empty: none has.

    Args:
        most: updates that it may have behind it.
    """
    return _newest(run, LINES, most) or ""


def _newest(run: Path, key: str, most: int | None = None) -> str | None:
    for folder in reversed(list_checkpoints(run)):
        if most is None or update_of(folder) <= most:
            try:
                return read_manifest(folder).get(key)
            except DamagedCheckpoint:
                continue
    return None
