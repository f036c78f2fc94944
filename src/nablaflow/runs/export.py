"""A run's policy in a folder of its own, in a format that other programs read, with its card."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nablaflow import nano
from nablaflow.config.overrides import plain_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError, nearest, show
from nablaflow.hub import is_local
from nablaflow.methods import Method
from nablaflow.models import LivePipeline, ModelSource
from nablaflow.models.export import LORA_FILE
from nablaflow.models.formats import DTYPES, FORMATS, KOHYA_FILE, write_policy
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.written import write_checksums
from nablaflow.report.card import Card, card_text
from nablaflow.report.loading import base_lines, folder_lines, fusing
from nablaflow.report.privacy import without_folders_in
from nablaflow.runs.folder import check_is_run
from nablaflow.runs.policy import BEST, LAST, REFERENCE, load_policy
from nablaflow.runs.pretrained import fused_lora, source_of
from nablaflow.runs.trust import THE_MODEL
from nablaflow.storage import checksums
from nablaflow.storage.files import (
    PARTIAL,
    folder_fault,
    put_in_place,
    remove_tree,
    what_failed,
    write_whole,
)
from nablaflow.storage.header import put_in_order
from nablaflow.storage.run_folder import SUMMARY

CARD, MANIFEST = "README.md", "export.json"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: with everything in it.
        files: names in it, to their SHA-256.
        update: after which the policy was taken.
    """

    folder: Path
    format: str
    dtype: str
    update: int
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
    final = Path("exports", f"{run.resolve().name}-{form}") if out is None else out
    check_is_run(run)
    _check_out(final, overwrite=overwrite)
    given = {"trusted": trusted, "pipeline": pipeline, "method": method, "settings": settings}
    model, config, folder = load_policy(
        run, THE_MODEL, checkpoint=checkpoint, average=average, choices=(LAST, BEST), **given
    )
    update = int(folder.name.partition("-")[2])
    source = source_of(config, pipeline)
    # At once: later the run may be another, by a training with --overwrite beside this.
    figures = None if average else _summary_of(run, update)  # an average was not measured
    with _beside(final) as partial:
        write_policy(model, source, partial, form, DTYPES[dtype])
        for path in sorted(partial.rglob("*.safetensors")):
            put_in_order(path)
        if form == "merged":
            write_checksums(partial)
        card = _card(config, model, source, update, form, dtype, figures, average=average)
        write_whole(partial / CARD, _text(card, run))
        files = _checksums(partial)
        exported = Exported(final, form, dtype, update, files)
        write_whole(partial / MANIFEST, checksums.sealed(_manifest(exported)))
    return exported


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
    fault = folder_fault(out.parent)  # it is written beside
    if fault is not None:
        raise UserError(f"--out: {fault}")
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
def _beside(final: Path) -> Iterator[Path]:
    """A folder to write to, which takes its name at the end or is removed."""
    partial = final.with_name(f"{PARTIAL}{final.name}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(partial)
        yield partial
        put_in_place(partial, final)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out: cannot write {final} ({what_failed(error)})") from error
    finally:
        remove_tree(partial)


# --- the card -------------------------------------------------------------------------------------


def _card(
    config: Config,
    model: PipelineModel,
    source: ModelSource,
    update: int,
    form: str,
    dtype: str,
    figures: dict[str, Any] | None,
    *,
    average: bool,
) -> Card:
    plain = without_folders_in(plain_config(config))
    base = plain["model"]
    hub_id = None if is_local(config.model) else config.model
    kind, lora = type(model.pipeline).__name__, fused_lora(source)
    facts = {
        "base model": base,
        "pipeline": kind,
        **_fused_told(lora),
        "reward": _shown(plain["reward"]),
        "method": plain["method"]["name"],
        "beta": f"{config.method.beta:g}" if isinstance(config.method.beta, float) else "none",
        "sampler": f"{config.sampler.name}, {config.sampler.steps} steps",
        "guidance scale": _guidance_told(config),
        "adapter": str(model.adapter.coverage).removeprefix("adapter: "),
        "updates": str(update),
        "weights": dtype,
        **_average_told(config, average=average),
    }
    return Card(
        f"the embedded model {base}" if base in nano.MODELS else base,
        hub_id,
        _CONTENT[form],
        kind,
        facts,
        figures,
        _loading(form, kind, base, lora, dtype),
    )


_CONTENT = {
    "diffusers": f"A LoRA in diffusers format, `{LORA_FILE}`; its scale is in its weights.",
    "kohya": f"A LoRA by kohya's names, `{KOHYA_FILE}`, for ComfyUI and A1111.",
    "merged": "A whole pipeline in diffusers format; nothing has to be loaded beside it.",
}


def _guidance_told(config: Config) -> str:
    sampler = config.sampler
    told = [f"{sampler.guidance_scale:g}"]
    told += [f"rescaled by {sampler.guidance_rescale:g}"] if sampler.guidance_rescale else []
    told += [f"clip skip {sampler.clip_skip}"] if sampler.clip_skip is not None else []
    return ", ".join(told)


def _average_told(config: Config, *, average: bool) -> dict[str, str]:
    """Which of the two it is, where a run has both."""
    decay = config.adapter.ema_decay
    if decay is None:
        return {}
    kept = f"its average over the updates, decay {decay:g}"
    return {"policy": kept if average else "as the last update left it"}


def _fused_told(lora: tuple[str, float] | None) -> dict[str, str]:
    return {} if lora is None else {"fused into the base model": f"{lora[0]} at {lora[1]:g}"}


def _loading(form: str, kind: str, base: str, lora: tuple[str, float] | None, dtype: str) -> str:
    """How what was written is loaded, and what has to be loaded besides."""
    if form == "kohya":
        first = "" if lora is None else f" beside {lora[0]} at strength {lora[1]:g}"
        return (
            f"Put `{KOHYA_FILE}` into the folder of LoRAs (ComfyUI: `models/loras`; A1111: "
            f"`models/Lora`), and load it at strength 1 on the base model{first}."
        )
    if form == "merged":
        lines = folder_lines(kind, "this/folder", dtype)
    else:
        lines = [*base_lines(kind, base), *fusing(lora)]
        lines += ['pipeline.load_lora_weights("this/folder")']
    return "\n".join(["```python", *lines, "```"])


def _shown(spec: Any) -> str:
    return spec if isinstance(spec, str) else json.dumps(spec, sort_keys=True)


def _summary_of(run: Path, update: int) -> dict[str, Any] | None:
    """The figures of the run, if they are of the policy after this update."""
    file = run / SUMMARY
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        return summary if summary["updates"] == update else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from None


def _text(card: Card, run: Path) -> str:
    try:
        return card_text(card)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(run / SUMMARY, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} is damaged ({type(error).__name__}); remove it to export without its figures"
    )
