"""Checkpoints: everything an exact continuation needs, written whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.adapters import load_trainable_state

FOLDER = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """The state between two updates.

    Attributes:
        update: how many updates are done.
        seconds: of training so far.
        tensors: group (policy, flow, …) to named tensors; a file each.
        state: what is not only tensors (optimizer, scaler, the rollout to train next), readable
            with ``weights_only``.
    """

    update: int
    seconds: float
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def _name(update: int) -> str:
    return f"step-{update:06d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob("step-*"))


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write beside, then rename: a crash or a full disk leaves the older ones whole.

    Args:
        keep: older checkpoints beyond this many are removed, after the new one is in place.

    Raises:
        UserError: it cannot be written.
    """
    final = run / FOLDER / _name(checkpoint.update)
    _write_whole(final, checkpoint)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    _prune_best(run)
    return final


def best_folder(run: Path, update: int) -> Path:
    """Where the policy that was the best under the guard after ``update`` is."""
    return run / FOLDER / f"best-{update:06d}"


def guards_best(run: Path, last: Path) -> Path | None:
    """The checkpoint of the guard's best policy, as the ``last`` checkpoint remembers it.

    Returns:
        None where the run has no guard, that checkpoint is gone, or ``last`` has the same policy.

    Raises:
        UserError: a file is damaged.
    """
    end = load_checkpoint(last)
    guard = end.state.get("guard")
    if not guard or not guard["best"]:
        return None
    folder = best_folder(run, guard["best"]["update"])
    if not folder.is_dir():
        return None
    ours, best = end.tensors["policy"], load_checkpoint(folder).tensors["policy"]
    # After a roll-back the two differ in their updates and not in their weights.
    same = ours.keys() == best.keys() and all(torch.equal(ours[k], best[k]) for k in ours)
    return None if same else folder


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
    oldest = int(list_checkpoints(run)[0].name.removeprefix("step-"))
    best = sorted((run / FOLDER).glob("best-*"))
    for old, newer in itertools.pairwise(best):
        if int(newer.name.removeprefix("best-")) <= oldest:
            shutil.rmtree(old)


def _write_whole(final: Path, checkpoint: Checkpoint) -> None:
    partial = final.with_name(f".partial-{final.name}")
    try:
        _write(partial, checkpoint)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own kind
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"output_dir: cannot write {final} ({reason}); free some space and run again with "
            "--resume, the checkpoint before is whole"
        ) from error


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for group, tensors in checkpoint.tensors.items():
        save_file(
            {name: t.contiguous() for name, t in tensors.items()}, folder / f"{group}.safetensors"
        )
    torch.save(checkpoint.state, folder / "state.pt")
    progress = {
        "update": checkpoint.update,
        "seconds": checkpoint.seconds,
        "groups": sorted(checkpoint.tensors),
    }
    (folder / "progress.json").write_text(json.dumps(progress))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint back, tensors on the processor.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        progress = json.loads((folder / "progress.json").read_text())
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in progress["groups"]}
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # each library has its own kind for a damaged file
        raise UserError(
            f"{folder} cannot be read ({type(error).__name__}); remove it to resume from the "
            "checkpoint before"
        ) from error
    return Checkpoint(progress["update"], progress["seconds"], tensors, state)


def load_policy_state(network: torch.nn.Module, folder: Path, model: str) -> None:
    """Put a checkpoint's policy into a network, and leave the rest of it unread.

    Args:
        model: what the run's configuration calls it, for the message.

    Raises:
        UserError: the file is damaged, or of another model.
    """
    try:
        state = load_file(folder / "policy.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read ({type(error).__name__}); remove it") from error
    try:
        load_trainable_state(network, state)
    except ValueError as error:
        raise UserError(f"{folder}: {error}; is {model} the run's own?") from error
