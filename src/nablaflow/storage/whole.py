"""Which checkpoints of a run can be used: a damaged one is named, and the one before it is taken.

A reader may come while the run is training: a checkpoint that is gone was replaced by a newer one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.storage.checkpoint import Checkpoint, best_folder, load_checkpoint, load_policy
from nablaflow.storage.files import remove_tree
from nablaflow.storage.lock import is_held
from nablaflow.storage.manifest import DamagedCheckpoint, list_checkpoints, update_of
from nablaflow.storage.run_folder import CHECKPOINTS, NAME

Found = TypeVar("Found")
_TRIES = 1000  # a run beside this reader may remove what was listed


def last_whole(run: Path, read: Callable[[Path], Found]) -> Found:
    """What ``read`` makes of the newest checkpoint that is whole; others are named on stderr.

    Raises:
        UserError: there is no checkpoint, or none that is whole.
    """
    damaged: dict[Path, DamagedCheckpoint] = {}
    suspect: set[Path] = set()  # it may have been replaced while it was read
    for _ in range(_TRIES):
        left = [path for path in list_checkpoints(run) if path not in damaged]
        if not left:
            break
        try:
            found = read(left[-1])
        except DamagedCheckpoint as error:
            if left[-1] in suspect:
                damaged[left[-1]] = error
            suspect.add(left[-1])
            continue
        for error in damaged.values():
            print(f"{_first(error)}; {left[-1].name} is used", file=sys.stderr)
        return found
    if damaged:
        raise next(iter(damaged.values()))
    raise UserError(f"{run} has no checkpoint yet; train it first")


def whole_checkpoints(
    run: Path, read: Callable[[Path], Found], before: Callable[[Path], Found] | None = None
) -> Iterator[tuple[Path, Found]]:
    """All checkpoints that are whole, oldest first, one at least, with what ``read`` makes of each.

    Each is read once, the last one before any other. Those that are damaged are named on stderr.

    Args:
        before: reads those before the last; None: as the last.

    Raises:
        UserError: as `last_whole`.
    """
    last = last_whole(run, lambda folder: (folder, read(folder)))
    yield from each_whole(checkpoints_before(run, last[0]), before or read)
    yield last


def checkpoints_before(run: Path, last: Path) -> list[Path]:
    """Those before ``last``, oldest first, of which nothing is read."""
    return [path for path in list_checkpoints(run) if update_of(path) < update_of(last)]


def each_whole(
    folders: Iterable[Path], read: Callable[[Path], Found]
) -> Iterator[tuple[Path, Found]]:
    """Each checkpoint with what ``read`` makes of it, when its turn comes.

    One that is damaged is named on stderr and left out.
    """
    for path in folders:
        try:
            found = read(path)
        except DamagedCheckpoint as error:
            if path.exists():
                print(f"{_first(error)}; it is left out", file=sys.stderr)
            continue
        yield path, found


@contextmanager
def steady(run: Path) -> Iterator[Path]:
    """A folder with the checkpoints of a run, from which no training beside this reader takes one.

    That is the run itself unless a process writes there; then it is one of links to its files, or
    of copies where the system's folder for such things is on another disk.
    """
    if not is_held(run) or not list_checkpoints(run):  # a message names the run then
        yield run
        return
    with TemporaryDirectory(prefix="nablaflow-") as name:
        place = Path(name)
        for _ in range(_TRIES):
            for folder in sorted((run / CHECKPOINTS).glob("[sb]*-*")):
                _link_all(folder, place / CHECKPOINTS / folder.name)
            if list_checkpoints(place):
                break
        with suppress(FileNotFoundError):  # of a run of an earlier version
            _link(run / NAME, place / NAME)
        yield place


def _link_all(source: Path, target: Path) -> None:
    """A checkpoint's files, once; of one that a newer one has replaced meanwhile nothing."""
    if target.exists():
        return
    try:
        target.mkdir(parents=True)
        for file in source.iterdir():
            _link(file, target / file.name)
    except FileNotFoundError:
        remove_tree(target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def checkpoint_to_resume(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint, None where there is none at all; damaged ones are named.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    return last_whole(run, load_checkpoint) if list_checkpoints(run) else None


def guards_best(
    run: Path, guard: Mapping[str, Any] | None, last: Mapping[str, Tensor]
) -> tuple[Path, dict[str, Tensor]] | None:
    """The checkpoint of the guard's best policy, and the policy.

    Args:
        guard: what the run's last checkpoint remembers of it; None without one.
        last: the policy there.

    Returns:
        None where the run has no guard, that checkpoint is gone, or ``last`` is the same policy.

    Raises:
        DamagedCheckpoint: a file is damaged.
    """
    if not guard or not guard["best"]:
        return None
    folder = best_folder(run, guard["best"]["update"])
    if not folder.is_dir():
        return None
    best = load_policy(folder)
    # After a roll-back the two differ in their updates and not in their weights.
    same = last.keys() == best.keys() and all(torch.equal(last[k], best[k]) for k in last)
    return None if same else (folder, best)


def retire_after(run: Path, update: int) -> None:
    """Put the damaged checkpoints of later updates out of the way of those to come."""
    for path in list_checkpoints(run):
        if update_of(path) > update:
            new = path.with_name(path.name.replace("step-", "damaged-"))
            remove_tree(new)
            os.replace(path, new)


def _first(error: Exception) -> str:
    return str(error).partition(";")[0]
