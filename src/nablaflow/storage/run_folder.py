"""A run's folder: what is in it, and what keeps it whole.

Only names that a run writes are ever removed, and only from a folder with the marker of a run. A
run that another replaces is set aside in `REPLACED` until the new one has a checkpoint; while its
files are moved the folder is called `MOVING`, so that a crash in between can be undone.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from nablaflow.errors import UserError
from nablaflow.storage.files import PARTIAL, SET_ASIDE, folder_fault, sync
from nablaflow.storage.lock import MARKER, is_held, is_run
from nablaflow.storage.scratch import PREFIX

CONFIG, METRICS, SUMMARY, REPORT = "config.yaml", "metrics.jsonl", "summary.json", "report.html"
CURVES, POINTS, CELL = "evaluation.png", "points.json", "cell.json"
CHECKPOINTS, SAMPLES, LOGS = "checkpoints", "samples", "logs"
AVERAGE = "ema"  # the policy's average over the updates
INDEX = "model_index.json"  # of a pipeline in diffusers' form
MODEL_KINDS = (".json", ".txt", ".model", ".safetensors")  # of the files that its parts are in
CHECKSUMS = "nablaflow-checksums.json"  # of those
CODE_FILES = "code.json"  # of the user's own, with their checksums
NAME = "run.json"  # by which a run's checkpoints are told from another's
LOG = "log.txt"  # what a terminal or a pipe is told of the work, line by line
REPLACED, MOVING = ".replaced", ".replacing"

_FILES = (CONFIG, METRICS, LOG, SUMMARY, REPORT, CURVES, POINTS, CELL, CODE_FILES, NAME)
_MODEL = (
    *(INDEX, CHECKSUMS, f"{PARTIAL}{CHECKSUMS}"),
    *(f"*/*{kind}" for kind in MODEL_KINDS),
)
_MANIFEST = "progress.json"
LORA_FILE = "pytorch_lora_weights.safetensors"  # in diffusers' form
_CONTENT = {
    "": (*_FILES, *(f"{PARTIAL}{name}" for name in _FILES)),
    f"{SAMPLES}/": ("step-*.png", "before_after.png", f"{PARTIAL}*.png"),
    **{
        f"{CHECKPOINTS}/{folder}/": (
            *(_MANIFEST, f"{PARTIAL}{_MANIFEST}"),
            *("state.pt", "*.safetensors"),
        )
        for folder in ("step-*", "best-*", "damaged-*", f"{PARTIAL}*")
    },
    **{
        f"{place}{beside}lora/": (LORA_FILE, f"{PARTIAL}{LORA_FILE}")
        for place in ("", f"{AVERAGE}/")
        for beside in ("", PARTIAL, f"{PARTIAL}old-")
    },
    **{
        f"{place}{beside}model/": _MODEL
        for place in ("", f"{AVERAGE}/")
        for beside in ("", PARTIAL, f"{PARTIAL}old-")
    },
    f"{LOGS}/": ("*/events.out.tfevents.*", "*/*/events.out.tfevents.*"),
}
OWN = tuple(folder + name for folder, names in _CONTENT.items() for name in names)
"""Patterns of every file that a run writes, for one part of its path each."""
_REWRITTEN = (CHECKPOINTS, AVERAGE, "lora", "model", REPLACED, MOVING)
_FOLDERS = (*_REWRITTEN, SAMPLES, LOGS)


def own_files(folder: Path) -> Iterator[Path]:
    """The files in a folder that a run wrote; a link is one of them and not what it points to."""
    found = {path for pattern in OWN for path in _matches(folder, pattern.split("/"))}
    yield from sorted(found)


def _matches(folder: Path, parts: list[str]) -> Iterator[Path]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if not fnmatchcase(entry.name, parts[0]):
            continue
        if entry.is_symlink() or (len(parts) == 1 and not entry.is_dir()):
            yield Path(entry.path)
        elif len(parts) > 1 and entry.is_dir():
            yield from _matches(Path(entry.path), parts[1:])


def check_no_links(run: Path) -> None:
    """Refuse to write where a name in the folder leads elsewhere, by a link or as a pipe.

    So is a folder where a run has a file, and a file where it has a folder: training would fail
    there, when all of it is done.

    Raises:
        UserError: it names it.
    """
    for name in sorted(os.listdir(run)) if run.is_dir() else []:
        if name == MARKER or any(fnmatchcase(name, pattern.split("/")[0]) for pattern in OWN):
            _refuse_links(run / name)
    for name in (REPLACED, MOVING):
        _refuse_links(run / name)
    for name in _FILES:
        if (run / name).is_dir():
            raise UserError(f"output_dir: {run / name} is a folder, and a run's is a file; move it")
    for name in _FOLDERS:
        if (run / name).is_file():
            raise UserError(f"output_dir: {run / name} is a file, and a run's is a folder; move it")


def place_fault(folder: Path) -> str | None:
    """Why nothing should be written in a folder: `folder_fault`, or `rewritten_fault`."""
    return folder_fault(folder) or rewritten_fault(folder)


def rewritten_fault(folder: Path) -> str | None:
    """Why what is written in a folder would not stay; None: it would.

    What a run writes anew, such as ``lora``, it removes with all that lies in it.
    """
    run = run_of_part(folder)
    return None if run is None else f"{folder} is in the run {run}, which writes anew what is there"


def run_of_part(folder: Path) -> Path | None:
    """The run that a folder is or lies in a part of, such as its ``lora``; None: it does not."""
    place = folder.resolve()
    around = (run for run in place.parents if place.relative_to(run).parts[0] in _REWRITTEN)
    return next(filter(is_run, around), None)


def _refuse_links(path: Path) -> None:
    if path.is_symlink():
        raise UserError(
            f"output_dir: {path} is a symbolic link, which a run does not write through; put what "
            "it points to in its place"
        )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"output_dir: {path} is a pipe or a device, and no file; remove it")
    if path.is_dir():
        for entry in os.scandir(path):
            _refuse_links(Path(entry.path))


def is_begun(run: Path) -> bool:
    """Whether there is anything in a folder but the traces of a run that wrote nothing yet."""
    names = set(os.listdir(run)) if run.is_dir() else set()
    begun = names - {MARKER, f"{PARTIAL}{CONFIG}"}
    return any(not name.startswith(PREFIX) for name in begun)


def check_replaceable(run: Path) -> None:
    """Whether `set_aside` may be called.

    Raises:
        UserError: nablaflow did not make the folder.
    """
    if not is_run(run):
        raise UserError(f"--overwrite: {run} holds no run of nablaflow; remove it by hand")


def set_aside(run: Path) -> None:
    """Make room for a new run; the old one waits, whole, until `forget_replaced`.

    What an earlier replacement left half done is settled first.
    """
    undo_move(run)
    if (run / REPLACED).is_dir():
        if not has_checkpoint(run):  # the run in between came to nothing, the one before counts
            _remove_own(run)
            return
        forget_replaced(run)
    _move(run, run / MOVING)
    os.replace(run / MOVING, run / REPLACED)
    sync(run)


def undo_move(run: Path) -> None:
    """Put back what a crash left half moved."""
    if (run / MOVING).is_dir():
        _move(run / MOVING, run)
        _remove_empty(run / MOVING)


def put_back(run: Path) -> bool:
    """Where the new run has come to no checkpoint, the old one takes its place again."""
    undo_move(run)
    if not (run / REPLACED).is_dir() or has_checkpoint(run):
        return False
    _remove_own(run)
    os.replace(run / REPLACED, run / MOVING)
    undo_move(run)
    sync(run)
    return True


def forget_replaced(run: Path) -> None:
    """Remove the run that was set aside."""
    if (run / REPLACED).is_dir():
        _remove_own(run / REPLACED)
        _remove_empty(run / REPLACED)


def remove_partial(run: Path) -> None:
    """Remove what a process that died left half written or half removed; names of a run's alone."""
    for path in own_files(run):
        if any(part.startswith(PARTIAL) for part in path.relative_to(run).parts):
            path.unlink()
    for folder in (run, run / CHECKPOINTS, run / AVERAGE):
        for left in folder.glob(f"{PARTIAL}*"):
            _remove_empty(left)


def undo_set_aside(run: Path) -> None:
    """Give a checkpoint its name again that a crash took it from before its successor had it.

    The last one is written anew when its policy is calibrated, and it may be the only one.
    """
    folder = run / CHECKPOINTS
    if folder.is_symlink() or is_held(run):
        return
    for old in folder.glob(f"{SET_ASIDE}*"):
        final = old.with_name(old.name.removeprefix(SET_ASIDE))
        if not os.path.lexists(final):
            with suppress(FileNotFoundError):  # another process of this launch was first
                os.replace(old, final)


def has_checkpoint(run: Path) -> bool:
    """Whether a run, and not only its guard, has one."""
    return any((run / CHECKPOINTS).glob("step-*/progress.json"))


def _move(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in own_files(source):
        new = target / path.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, new)
    _remove_empty_inside(source)


def _remove_own(folder: Path) -> None:
    for path in own_files(folder):
        path.unlink()
    _remove_empty_inside(folder)


def _remove_empty_inside(folder: Path) -> None:
    """Remove the empty ones of a run's own folders."""
    for name in {pattern.split("/")[0] for pattern in OWN if "/" in pattern}:
        for top in folder.glob(name):
            _remove_empty(top)


def _remove_empty(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            _remove_empty(Path(entry.path))
    if not any(os.scandir(folder)):
        folder.rmdir()


def peak_rss_mb() -> float:
    """Largest resident set of this process so far, MB of 2**20 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
