"""Checkpoints: everything an exact continuation needs, written whole or not at all.

`progress.json` is the manifest: the update, the run's configuration, and the SHA-256 of each file,
its own included. What does not agree with it to the bit is never used.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.storage import checksums
from nablaflow.storage.files import (
    PARTIAL,
    put_in_place,
    read_text,
    remove_tree,
    system_says,
    what_failed,
    write_whole,
)
from nablaflow.storage.lines import marks_of
from nablaflow.storage.naming import KEY as NAMED
from nablaflow.storage.naming import name_of
from nablaflow.storage.run_folder import CHECKPOINTS

MANIFEST, STATE = "progress.json", "state.pt"
LINES = "lines"
"""In the manifest: marks of the lines of metrics.jsonl; earlier versions have none."""
_NAME = re.compile(r"(step|best)-(\d{6,})")
_GROUP = re.compile(r"[a-z_]+")  # becomes a file's name, and may come from someone else's file


@dataclass(frozen=True)
class Checkpoint:
    """The state between two updates.

    Attributes:
        update: how many updates are done.
        seconds: of training so far.
        tensors: group (policy, flow, …) to named tensors; a file each.
        state: what is not only tensors (optimizer, scaler, the rollout to train next), readable
            with ``weights_only``.
        config: of the run, as config.yaml has it.
    """

    update: int
    seconds: float
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    config: str = ""


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what was written, or that holds a policy of no use."""


def _name(update: int) -> str:
    return f"step-{update:06d}"


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
    return _in_order((run / CHECKPOINTS).glob("step-*"))


def _in_order(folders: Iterable[Path]) -> list[Path]:
    return sorted((path for path in folders if _NAME.fullmatch(path.name)), key=update_of)


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write beside, then rename: a crash or a full disk leaves the older ones whole.

    Args:
        keep: older checkpoints beyond this many are removed, after the new one is on the disk.

    Raises:
        UserError: it cannot be written.
    """
    final = run / CHECKPOINTS / _name(checkpoint.update)
    _write_whole(final, checkpoint)
    for old in list_checkpoints(run)[:-keep]:
        _remove(old)
    _prune_best(run)
    return final


def best_folder(run: Path, update: int) -> Path:
    """Where the policy that was the best under the guard after ``update`` is."""
    return run / CHECKPOINTS / f"best-{update:06d}"


def save_best(run: Path, checkpoint: Checkpoint) -> Path:
    """Write the best checkpoint so far, which ``keep`` of the others does not touch.

    Raises:
        UserError: it cannot be written.
    """
    final = best_folder(run, checkpoint.update)
    _write_whole(final, checkpoint)
    return final


def _prune_best(run: Path) -> None:
    """Remove those that no kept checkpoint has for its best: a newer one was there before it."""
    oldest = update_of(list_checkpoints(run)[0])
    best = _in_order((run / CHECKPOINTS).glob("best-*"))
    for old, newer in itertools.pairwise(best):
        if update_of(newer) <= oldest:
            _remove(old)


def _remove(folder: Path) -> None:
    """In two steps: a crash in between leaves no stump under a checkpoint's name."""
    stump = folder.with_name(f"{PARTIAL}{folder.name}")
    remove_tree(stump)
    os.replace(folder, stump)
    remove_tree(stump)


def _write_whole(final: Path, checkpoint: Checkpoint) -> None:
    partial = final.with_name(f"{PARTIAL}{final.name}")
    try:
        _write(partial, checkpoint, final.parents[1])
        put_in_place(partial, final)
    except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own kind
        remove_tree(partial)
        if isinstance(error, RuntimeError) and system_says(error) is None:
            raise  # a device's fault, say, which no space on a disk would mend
        older = [path.name for path in list_checkpoints(final.parents[1]) if path != final]
        left = f"{older[-1]} is whole" if older else "no checkpoint was written before it"
        raise UserError(
            f"output_dir: cannot write {final} ({what_failed(error)}); {left}. Free some space and "
            "run again with --resume"
        ) from error


def _write(folder: Path, checkpoint: Checkpoint, run: Path) -> None:
    remove_tree(folder)
    folder.mkdir(parents=True)
    for group, tensors in checkpoint.tensors.items():
        save_file(
            {name: t.contiguous() for name, t in tensors.items()}, folder / f"{group}.safetensors"
        )
    with open(folder / STATE, "wb") as file:  # Python's own, whose errors say what the disk said
        torch.save(checkpoint.state, file)
    manifest = {
        "update": checkpoint.update,
        "seconds": checkpoint.seconds,
        "groups": sorted(checkpoint.tensors),
        "config": checkpoint.config,
        NAMED: name_of(run),
        LINES: marks_of(run, checkpoint.update),
        "files": {path.name: checksums.of_file(path) for path in sorted(folder.iterdir())},
    }
    write_whole(folder / MANIFEST, checksums.sealed(manifest))


# --- reading --------------------------------------------------------------------------------------


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint back, tensors on the processor.

    Raises:
        DamagedCheckpoint: a file is missing or damaged, or a value is not finite.
    """
    manifest = read_manifest(folder)
    try:
        for name in manifest["files"]:
            _check_file(folder, name, manifest)
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in manifest["groups"]}
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except DamagedCheckpoint:
        raise
    except Exception as error:  # each library has its own kind for a damaged file
        raise _damaged(folder, type(error).__name__) from error
    for group, own in tensors.items():
        _check_finite(folder, group, own)
    return Checkpoint(manifest["update"], manifest["seconds"], tensors, state, manifest["config"])


def load_policy(folder: Path) -> dict[str, Tensor]:
    """The policy's parameters in a checkpoint, as `load_group`."""
    return load_group(folder, "policy")


def load_group(folder: Path, group: str) -> dict[str, Tensor]:
    """One group of a checkpoint's tensors; the rest of it is left unread.

    Raises:
        DamagedCheckpoint: its file is missing or damaged, or a value is not finite.
    """
    manifest, name = read_manifest(folder), f"{group}.safetensors"
    if name not in manifest["files"]:
        raise _damaged(folder, f"it has no {name}")
    try:
        _check_file(folder, name, manifest)
        found = load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, f"{name}: {type(error).__name__}") from error
    _check_finite(folder, group, found)
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``progress.json`` says: it agrees with its checksum, the folder's name, and the run's.

    Raises:
        DamagedCheckpoint: it does not.
    """
    try:
        manifest = checksums.unseal(read_text(folder / MANIFEST))
        _check_form(manifest)
    except Exception as error:  # of a file that may hold anything
        raise _damaged(folder, f"{MANIFEST}: {type(error).__name__}") from error
    name = _NAME.fullmatch(folder.name)
    if name is not None and int(name[2]) != manifest["update"]:
        raise _damaged(folder, f"it holds update {manifest['update']}")
    own, found = name_of(folder.parents[1]), manifest.get(NAMED)
    if None not in (own, found) and own != found:
        raise _damaged(folder, "it is of another run")
    return manifest


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


def _check_file(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    if checksums.of_file(folder / name) != manifest["files"][name]:
        raise _damaged(folder, f"{name} is not what was written")


def _check_finite(folder: Path, group: str, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise _damaged(folder, f"{group}: {name} is not finite")


def _damaged(folder: Path, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{folder} cannot be used ({what}); remove it to go on from the checkpoint before"
    )
