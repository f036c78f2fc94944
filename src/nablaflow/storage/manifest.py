"""The manifest of a checkpoint, by which it is known; read without torch.

`progress.json` has the update, the run's name and configuration, the SHA-256 of each file, its own
included, and a mark of each line of metrics.jsonl up to then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError
from nablaflow.storage import checksums
from nablaflow.storage.files import read_text
from nablaflow.storage.lines import Marks
from nablaflow.storage.naming import KEY as NAMED
from nablaflow.storage.naming import name_of
from nablaflow.storage.run_folder import CHECKPOINTS

MANIFEST, STATE = "progress.json", "state.pt"
POLICY = "policy.safetensors"
TRAINED = "trained"
"""Group of a checkpoint: the policy before ``training.calibrate`` changed it."""
LINES = "lines"
"""In the manifest: marks of the lines of metrics.jsonl; earlier versions have none."""
_NAME = re.compile(r"(step|best)-(\d{6,})")
_GROUP = re.compile(r"[a-z_]+")  # becomes a file's name, and may come from someone else's file


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what was written, or that holds a policy of no use."""


def update_of(folder: Path) -> int:
    """How many updates a checkpoint has behind it, by its folder's name.

    >>> update_of(Path("step-000050"))
    50
    """
    name = _NAME.fullmatch(folder.name)
    assert name is not None
    return int(name[2])


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; `whole` says whether one is undamaged."""
    return in_order((run / CHECKPOINTS).glob("step-*"))


def in_order(folders: Iterable[Path]) -> list[Path]:
    """Those that are checkpoints by their names, by their updates."""
    return sorted((path for path in folders if _NAME.fullmatch(path.name)), key=update_of)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``progress.json`` says: it agrees with its checksum, the folder's name, and the run's.

    Raises:
        DamagedCheckpoint: it does not.
    """
    if not (folder / MANIFEST).exists():
        raise damaged(folder, f"it has no {MANIFEST}")
    try:
        manifest = checksums.unseal(read_text(folder / MANIFEST))
        _check_form(manifest)
    except Exception as error:  # of a file that may hold anything
        raise damaged(folder, f"{MANIFEST}: {type(error).__name__}") from error
    name = _NAME.fullmatch(folder.name)
    if name is not None and int(name[2]) != manifest["update"]:
        raise damaged(folder, f"it holds update {manifest['update']}")
    own, found = name_of(folder.parents[1]), manifest.get(NAMED)
    if None not in (own, found) and own != found:
        raise damaged(folder, "it is of another run")
    return manifest


def policy_mark(folder: Path, *, trained: bool = False) -> str | None:
    """The checksum of a checkpoint's policy; None: the checkpoint is damaged.

    Args:
        trained: of the policy as it was trained, see `trained_group`.
    """
    try:
        manifest = read_manifest(folder)
    except DamagedCheckpoint:
        return None
    return manifest["files"][f"{trained_group(manifest)}.safetensors" if trained else POLICY]


def trained_group(manifest: Mapping[str, Any]) -> str:
    """The group that has the policy as it was trained: one of its own where it was changed."""
    return TRAINED if TRAINED in manifest["groups"] else "policy"


def _check_form(manifest: Mapping[str, Any]) -> None:
    groups = manifest["groups"]
    files = {STATE, *(f"{group}.safetensors" for group in groups)}
    fit = (
        isinstance(manifest["update"], int)
        and isinstance(manifest["seconds"], int | float)
        and isinstance(manifest["config"], str)
        and isinstance(manifest.get(NAMED), str | None)
        and isinstance(manifest.get(LINES, ""), str)
        and all(_GROUP.fullmatch(group) for group in groups)
        and "policy" in groups
        and set(manifest["files"]) == files
    )
    if not fit:
        raise ValueError("not a manifest")


def damaged(folder: Path, what: str) -> DamagedCheckpoint:
    """An error about a checkpoint, and what to do."""
    return DamagedCheckpoint(
        f"{folder} cannot be used ({what}); remove it to go on from the checkpoint before"
    )


def name_in(run: Path) -> str | None:
    """The run's name as its newest whole checkpoint has it; None: none has."""
    found = _newest(run)
    return None if found is None else found.get(NAMED)


def known_lines(run: Path, most: int | None = None) -> Marks:
    """The marks of a run's lines as its newest whole checkpoint has them.

    Args:
        most: updates that it may have behind it.
    """
    found = _newest(run, most)
    return Marks() if found is None else Marks(found.get(LINES, ""), found["update"])


def _newest(run: Path, most: int | None = None) -> dict[str, Any] | None:
    for folder in reversed(list_checkpoints(run)):
        if most is None or update_of(folder) <= most:
            try:
                return read_manifest(folder)
            except DamagedCheckpoint:
                continue
    return None
