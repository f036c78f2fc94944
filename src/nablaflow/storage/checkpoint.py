"""Checkpoints: everything an exact continuation needs, written whole or not at all.

What does not agree with its manifest, to the bit, is never used.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
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
    remedy,
    remove_tree,
    system_says,
    what_failed,
    write_whole,
)
from nablaflow.storage.lines import marks_of
from nablaflow.storage.manifest import (
    LINES,
    MANIFEST,
    NAMED,
    STATE,
    DamagedCheckpoint,
    damaged,
    in_order,
    known_lines,
    list_checkpoints,
    read_manifest,
    trained_group,
    update_of,
)
from nablaflow.storage.naming import name_of
from nablaflow.storage.run_folder import CHECKPOINTS


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


def _name(update: int) -> str:
    return f"step-{update:06d}"


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
    best = in_order((run / CHECKPOINTS).glob("best-*"))
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
            f"output_dir: cannot write {final} ({what_failed(error)}); {left}. "
            f"{remedy(error).capitalize()} and run again with --resume"
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
        LINES: marks_of(run, checkpoint.update, known_lines(run, checkpoint.update)),
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
        raise damaged(folder, type(error).__name__) from error
    for group, own in tensors.items():
        _check_finite(folder, group, own)
    return Checkpoint(manifest["update"], manifest["seconds"], tensors, state, manifest["config"])


def load_calibration(folder: Path) -> dict[str, Any] | None:
    """How ``training.calibrate`` changed the policy in a checkpoint; None: it is as trained.

    Raises:
        DamagedCheckpoint: the file that has it is missing or damaged.
    """
    manifest = read_manifest(folder)
    if trained_group(manifest) == "policy":
        return None
    try:
        _check_file(folder, STATE, manifest)
        # Mapped, since the optimizer's moments are there, twice the size of what trains.
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
    except DamagedCheckpoint:
        raise
    except Exception as error:  # as in `load_checkpoint`
        raise damaged(folder, f"{STATE}: {type(error).__name__}") from error
    return calibration_in(state, update_of(folder))


def calibration_in(state: Mapping[str, Any], update: int) -> dict[str, Any] | None:
    """The same of a state that is read, after so many updates: a later policy is another one."""
    found = state.get("calibrated")  # which an earlier version had not
    return found if found is not None and found["update"] == update else None


def load_policy(folder: Path) -> dict[str, Tensor]:
    """The policy's parameters in a checkpoint, as `load_group`."""
    return load_group(folder, "policy")


def load_trained(folder: Path) -> dict[str, Tensor]:
    """The policy as it was trained, before ``training.calibrate`` changed it, as `load_group`.

    A checkpoint before the last has another one where a run that ended there has gone on later.
    """
    return load_group(folder, trained_group(read_manifest(folder)))


def load_group(folder: Path, group: str) -> dict[str, Tensor]:
    """One group of a checkpoint's tensors; the rest of it is left unread.

    Raises:
        DamagedCheckpoint: its file is missing or damaged, or a value is not finite.
    """
    manifest, name = read_manifest(folder), f"{group}.safetensors"
    if name not in manifest["files"]:
        raise damaged(folder, f"it has no {name}")
    try:
        _check_file(folder, name, manifest)
        found = load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise damaged(folder, f"{name}: {type(error).__name__}") from error
    _check_finite(folder, group, found)
    return found


def _check_file(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    path = folder / name
    if not path.exists():
        raise damaged(folder, f"it has no {name}")
    if checksums.of_file(path) != manifest["files"][name]:
        raise damaged(folder, f"{name} is not what was written")


def _check_finite(folder: Path, group: str, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise damaged(folder, f"{group}: {name} is not finite")
