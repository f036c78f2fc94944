"""A run's policy in a folder of its own, in a format that other programs read, with its card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nablaflow.errors import UserError, nearest, show
from nablaflow.methods import Method
from nablaflow.models import LivePipeline
from nablaflow.models.formats import DTYPES, FORMATS, write_policy
from nablaflow.runs.export_card import Taken, card_of, summary_of, text_of
from nablaflow.runs.policy import BEST, LAST, REFERENCE, load_policy
from nablaflow.runs.pretrained import source_of
from nablaflow.runs.saved_config import check_is_run
from nablaflow.runs.trust import THE_MODEL
from nablaflow.storage import checksums
from nablaflow.storage.checkpoint import load_calibration
from nablaflow.storage.files import folder_fault, put_in_place, what_failed, write_whole
from nablaflow.storage.header import put_in_order
from nablaflow.storage.manifest import update_of
from nablaflow.storage.run_folder import rewritten_fault
from nablaflow.storage.scratch import scratch_folder
from nablaflow.storage.written import write_checksums

CARD, MANIFEST = "README.md", "export.json"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: with everything in it.
        files: names in it, to their SHA-256.
        update: after which the policy was taken.
        strength: of what was trained, which the weights have in them.
        average: whether it is the policy's average over the updates.
    """

    folder: Path
    format: str
    dtype: str
    update: int
    strength: float
    average: bool
    files: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "folder": str(self.folder)}


def export_run(
    run: Path,
    form: str,
    out: Path | None = None,
    *,
    dtype: str = "float32",
    checkpoint: str = LAST,
    strength: float = 1.0,
    average: bool = False,
    overwrite: bool = False,
    trusted: bool = False,
    pipeline: LivePipeline | None = None,
    method: type[Method] | None = None,
    settings: Sequence[str] = (),
) -> Exported:
    """Write a run's policy, as a checkpoint has it, to a folder; all of it or nothing.

    Args:
        form: ``diffusers``, ``kohya`` or ``merged``.
        out: the folder; default: ``exports/`` and the names of run and format.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of the weights.
        checkpoint: ``last``, ``best`` or ``step-12``.
        strength: of what was trained, which the weights then have in them: 0 is the reference, 1
            the policy.
        average: its average over the updates, of a run with ``adapter.ema_decay``.
        overwrite: replace an earlier export there.
        trusted: whether the user's word is given for what the run asks for.
        pipeline: the one that the run was begun with, where it has no name.
        method: the class of the one that it was begun with, where it has no file.
        settings: ``model=…``, ``model_lora=…``, where the run's own are now.

    Raises:
        UserError: a mistake in any of these, no such checkpoint, or a format that cannot hold it.
        ExportError: a stock pipeline gives another image; nothing is left behind.
    """
    _check_choices(form, dtype, checkpoint)
    if strength == 0:
        raise UserError("--strength: 0 is the base model; give a larger one, 1 is the policy")
    final = Path("exports", f"{run.resolve().name}-{form}") if out is None else out
    check_is_run(run)
    _check_out(final, overwrite=overwrite)
    given = {"trusted": trusted, "pipeline": pipeline, "method": method, "settings": settings}
    which = {"checkpoint": checkpoint, "strength": strength, "average": average}
    model, config, folder = load_policy(run, THE_MODEL, choices=(LAST, BEST), **which, **given)
    update = update_of(folder)
    source = source_of(config, pipeline)
    # At once: later the run may be another, by a training with --overwrite beside this.
    measured = strength == 1 and not average  # the run has no figures of another
    figures = summary_of(run, folder) if measured else None
    with _beside(final, overwrite=overwrite) as partial:
        write_policy(model, source, partial, form, DTYPES[dtype])
        for path in sorted(partial.rglob("*.safetensors")):
            put_in_order(path)
        if form == "merged":
            write_checksums(partial)
        taken = Taken(update, strength, average, 1.0 if average else left_of(folder))
        card = card_of(config, model, source, taken, form, dtype, figures)
        write_whole(partial / CARD, text_of(card, run))
        files = _checksums(partial)
        exported = Exported(final, form, dtype, update, strength, average, files)
        write_whole(partial / MANIFEST, checksums.sealed(_manifest(exported)))
    return exported


def left_of(checkpoint: Path) -> float:
    """The strength that ``training.calibrate`` left of the policy in a checkpoint; 1: all."""
    found = load_calibration(checkpoint)
    return 1.0 if found is None else found["strength"]


def _check_choices(form: str, dtype: str, checkpoint: str) -> None:
    for option, value, known in (("format", form, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise UserError(f"--{option}: {show(value)} is none; {nearest(value, known)}")
    if checkpoint == REFERENCE:
        raise UserError("--checkpoint: the reference is the base model; use last, best or step-N")


# --- the folder -----------------------------------------------------------------------------------


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Find out before the work whether the folder may be written."""
    try:
        there, empty = os.path.lexists(out), out.is_dir() and not any(out.iterdir())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out: no folder can have this name ({reason})") from None
    fault = folder_fault(out.parent) or rewritten_fault(out)  # it is written beside
    if fault is not None:
        raise UserError(f"--out: {fault}; give another folder")
    if out.name in ("", ".."):
        raise UserError(f"--out: {out} has no name of its own; give a new folder's")
    if out.suffix == ".safetensors":
        raise UserError(f"--out: {out} would be a file; give a folder, for it and its card")
    if not there:
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"--out: {out} is a link or a file; give another folder")
    if empty:
        return
    if not _is_export(out):
        raise UserError(f"--out: {out} holds something else; give another folder")
    if not overwrite:
        raise UserError(f"--out: {out} holds an export already; use --overwrite or another folder")


def _is_export(folder: Path) -> bool:
    """Whether an export wrote the folder, and nobody put anything else there."""
    try:
        known = checksums.unseal((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        found = {path.relative_to(folder).as_posix() for path in _files(folder)}
        return found == {*known, MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _checksums(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): checksums.of_file(p) for p in _files(folder)}


def _manifest(exported: Exported) -> dict[str, Any]:
    return {name: value for name, value in exported.as_dict().items() if name != "folder"}


@contextmanager
def _beside(final: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, no other export's, which takes its name at the end or is removed."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(final.parent) as place:
            yield place / final.name
            _check_out(final, overwrite=overwrite)  # another may have been written meanwhile
            put_in_place(place / final.name, final)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out: cannot write {final} ({what_failed(error)})") from error
