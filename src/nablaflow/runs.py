"""The whole job: train, measure, save, report. The command line and `nf.align` both end here."""

from __future__ import annotations

import errno
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from nablaflow.errors import UserError
from nablaflow.models.adapters import swapped
from nablaflow.models.export import save_policy
from nablaflow.models.rehearsal import rehearse
from nablaflow.report import Saved, before_after, grid, write_report
from nablaflow.report.pictures import save_picture
from nablaflow.report.privacy import without_folders, without_folders_in
from nablaflow.report.words import warnings
from nablaflow.rewards import NamedReward
from nablaflow.storage.checkpoint import best_folder, list_checkpoints
from nablaflow.storage.files import write_whole
from nablaflow.storage.records import append_record, drop_records_after, read_records
from nablaflow.storage.run_folder import REPORT, SAMPLES, SUMMARY, peak_rss_mb
from nablaflow.storage.whole import checkpoint_to_resume, retire_after
from nablaflow.training.bank import sample_states
from nablaflow.training.choices import as_chosen, undecided
from nablaflow.training.config import Config
from nablaflow.training.evaluation import Evaluation, evaluate
from nablaflow.training.memory import in_parts
from nablaflow.training.overrides import dump_values, plain_config
from nablaflow.training.run_folder import check_run, open_run
from nablaflow.training.setup import Parts, fresh_accelerator, model_source, prepare
from nablaflow.training.stepper import Record
from nablaflow.training.trust import remember

SHEET = 16  # images on a sheet of samples during training


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run stopped between two updates, with a checkpoint."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: with everything in it.
        summary: what summary.json holds.
        lora: folder of the adapter, or of the whole model where no adapter can be loaded.
    """

    folder: Path
    summary: dict[str, Any]
    lora: Path


def progress_display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def stopping(asked: list[bool]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a stop after the update; the second stops at once."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        asked.append(True)
        restore()

    try:
        for number in signals:
            signal.signal(number, ask)
    except ValueError:  # not the main thread, where signals do not arrive anyway
        yield
        return
    try:
        yield
    finally:
        restore()


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Ctrl-C or SIGTERM while a trained run is measured: nothing is lost but the figures so far."""

    def stop(number: int, frame: Any) -> None:
        raise Interrupted("stopped while the run was measured; it is trained, go on with --resume")

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _disk_full_is_the_users(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        found = list_checkpoints(folder)
        left = f"{found[-1].name} is whole" if found else "there is no checkpoint yet"
        raise UserError(
            f"output_dir: cannot write {error.filename or folder} ({error.strerror}); {left}. Free "
            "some space and run again with --resume"
        ) from error


def run(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    reward: NamedReward | None = None,
) -> Run:
    """Carry out a configuration.

    Args:
        reward: in place of the configuration's, which then only names it.

    Raises:
        UserError: a mistake in it; nothing was written unless the folder was fit to be used.
        TrainingStopped: training cannot go on; the last checkpoint is whole.
        Interrupted: after Ctrl-C, with a checkpoint.
    """
    console = console or Console(stderr=True)
    folder = config.output_dir
    if resume:
        config = as_chosen(config)
    check_run(config, resume=resume, overwrite=overwrite)
    with fresh_accelerator():
        found = list_checkpoints(folder) if resume else []
        parts = _prepare(config, folder, reward, found[-1] if found else None, console)
        if not resume:
            # Before the folder, since they may refuse.
            _rehearse(parts)
            _begin(parts, console)
        with _opened(parts, resume=resume, overwrite=overwrite):
            if resume:
                _restore(parts, folder)
            parts.tell((*parts.notes, *parts.choices))
            with _disk_full_is_the_users(folder), progress_display(console) as progress:
                _train(parts, folder, progress)
                with _stopped_at_once():
                    result = _finish(parts, folder, progress)
        parts.accelerator.end_training()  # of the trackers, and of the group of processes
    return result


def _rehearse(parts: Parts) -> None:
    """Find out on the main process what would otherwise fail at the end."""
    if not parts.accelerator.is_main_process:
        return
    run = parts.config.output_dir.absolute()
    place = next(folder for folder in run.parents if folder.is_dir())
    note = rehearse(parts.model, model_source(parts.config.model), place)
    if note is not None:
        print(note, file=sys.stderr)


@contextmanager
def _opened(parts: Parts, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """The run's folder, which the main process holds."""
    with ExitStack() as stack:
        if parts.accelerator.is_main_process:
            stack.enter_context(open_run(parts.config, resume=resume, overwrite=overwrite))
            remember(parts.config)
        parts.accelerator.wait_for_everyone()
        yield


def _prepare(
    config: Config,
    folder: Path,
    reward: NamedReward | None,
    checkpoint: Path | None,
    console: Console,
) -> Parts:
    """The parts, under a bar where there is a beta to be found."""
    if undecided(config) is None:
        return prepare(config, folder, reward, checkpoint)
    with progress_display(console) as progress:
        return prepare(config, folder, reward, checkpoint, starter(progress))


def _begin(parts: Parts, console: Console) -> None:
    """What is measured on the reference before the first update."""
    with progress_display(console) as progress:
        _begin_gamma(parts, progress)
        if parts.trainer.guard is not None:
            parts.trainer.begin_guard(_looking(parts, progress))


def _begin_gamma(parts: Parts, progress: Progress) -> None:
    """Measure how far to trust the forward-looking reward, and say what was found."""
    trainer = parts.trainer
    if trainer.gamma is None or trainer.gamma.isfinite().all():
        return
    shown = parts.accelerator.is_main_process
    task = progress.add_task("measure gamma", total=len(trainer.gamma_prompts()), visible=shown)
    trainer.begin_gamma(lambda done: progress.advance(task, done))
    if shown:
        told = " ".join(f"{value:.2f}" for value in trainer.gamma[1:].tolist())
        progress.console.print(f"gamma, trust in the predicted reward, k = 1 ... K: {told}")
    progress.remove_task(task)


def _looking(parts: Parts, progress: Progress) -> Callable[[int], None]:
    """The guard's bar: it fills anew at each look, and is seen only until it is full."""
    if parts.trainer.guard is None or not parts.accelerator.is_main_process:
        return lambda done: None
    total = parts.trainer.guard.n
    task = progress.add_task("guard", total=total, visible=False)
    count = [0]

    def told(done: int) -> None:
        count[0] = (count[0] + done) % total
        progress.update(task, completed=count[0], visible=count[0] > 0)

    return told


def _measure(parts: Parts, progress: Progress) -> Evaluation:
    return evaluate(
        parts.config,
        parts.evaluated,
        parts.model,
        parts.reward,
        parts.fingerprint,
        parts.trainer.method.beta,
        starter(progress),
    )


def _restore(parts: Parts, folder: Path) -> None:
    checkpoint = checkpoint_to_resume(folder)
    parts.accelerator.wait_for_everyone()  # all have read it, before any name is changed
    if checkpoint is not None:
        parts.trainer.restore(checkpoint)
    if parts.accelerator.is_main_process:
        drop_records_after(folder, parts.trainer.update)
        if checkpoint is not None:
            retire_after(folder, checkpoint.update)
            _write_missing_sheet(parts, folder)


def _train(parts: Parts, folder: Path, progress: Progress) -> None:
    trainer, accelerator, config = parts.trainer, parts.accelerator, parts.config
    shown = accelerator.is_main_process
    accelerator.init_trackers("nablaflow", {"method": parts.trainer.method.name})
    task = progress.add_task("train", total=trainer.total, completed=trainer.done, visible=shown)
    pressed: list[bool] = []
    warned: set[str] = set()
    on_look = _looking(parts, progress)
    _begin_gamma(parts, progress)
    trainer.begin_guard(on_look)

    def on_update(record: Record) -> bool:
        if shown:
            append_record(folder, record)
            accelerator.log({k: v for k, v in record.items() if k != "update"}, step=trainer.update)
            told = f"train: reward {record['reward_mean']:.3f}, loss {record['loss']:.2g}"
            told += _guard_told(parts)
            for line in _new_warnings(parts, warned):
                progress.console.print(line)
            progress.update(task, completed=trainer.done, description=told)
        return bool(pressed)

    def on_saved() -> None:
        if shown and trainer.update % config.training.sample_every == 0:
            _write_sheet(parts, folder)

    with stopping(pressed):
        trainer.train(folder, on_update, on_saved, on_look)
    if pressed and not trainer.finished:
        accelerator.end_training()
        raise Interrupted(f"stopped after update {trainer.update}; go on with --resume")


def _guard_told(parts: Parts) -> str:
    """The latest of the guard's figures, for the progress bar."""
    guard = parts.trainer.guard
    if guard is None or guard.last is None:
        return ""
    return f", kl {guard.last.kl:.3g}, diversity {guard.last.diversity:.0%}"


def _new_warnings(parts: Parts, warned: set[str]) -> list[str]:
    """What a guard that only warns has to say for the first time; ``warned`` are its metrics."""
    guard = parts.trainer.guard
    if guard is None or guard.last is None or guard.settings.action != "warn":
        return []
    found = warnings(asdict(guard.last), guard.settings.budgets)
    new = [f"after update {guard.last.update}: {found[metric]}" for metric in found.keys() - warned]
    warned.update(found)
    return sorted(new)


@torch.no_grad()
def _write_sheet(parts: Parts, folder: Path) -> None:
    """Samples of the policy now, from the same noise each time."""
    model, batch = parts.model, parts.config.evaluation.batch
    states = sample_states(
        model,
        parts.prompts,
        SHEET,
        seed=0,
        batch=batch,
        purpose="sheet",
        on_progress=lambda done: None,
    )
    images = in_parts(
        lambda rows: model.decode(states[rows].to(model.device)).cpu(),
        SHEET,
        batch,
        "evaluation.batch",
    )
    (folder / SAMPLES).mkdir(exist_ok=True)
    save_picture(grid(torch.cat(list(images)), columns=4), _sheet(parts, folder))


def _sheet(parts: Parts, folder: Path) -> Path:
    return folder / SAMPLES / f"step-{parts.trainer.update:06d}.png"


def _write_missing_sheet(parts: Parts, folder: Path) -> None:
    """The one that a crash came before: its checkpoint was there already."""
    due = parts.trainer.update % parts.config.training.sample_every == 0
    if due and not _sheet(parts, folder).exists():
        _write_sheet(parts, folder)


def starter(progress: Progress) -> Callable[[str, int], Callable[[int], None]]:
    """Shows each piece of work as a bar of its own."""

    def start(what: str, total: int) -> Callable[[int], None]:
        task = progress.add_task(what, total=total)
        return lambda done: progress.advance(task, done)

    return start


def _finish(parts: Parts, folder: Path, progress: Progress) -> Run:
    """Save the policy, measure it, write summary and report; the main process does."""
    if not parts.accelerator.is_main_process:
        parts.accelerator.wait_for_everyone()
        return Run(folder, {}, folder)
    started = time.perf_counter()
    source = model_source(parts.config.model)
    saved = save_policy(parts.model, source, folder)
    _save_average(parts, source, folder)
    evaluation = _measure(parts, progress)
    seconds = parts.trainer.seconds + time.perf_counter() - started
    summary = {
        **evaluation.summary,
        "seconds": seconds,
        "training_seconds": parts.trainer.seconds,
        "peak_rss_mb": peak_rss_mb(),
        "updates": parts.trainer.update,
    }
    guard = parts.trainer.guard
    if guard is not None and guard.best is not None:
        best = best_folder(folder, guard.best.update).relative_to(folder)
        summary["guard"] = guard.summary(best.as_posix())
    write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    _write_pictures(parts, folder, evaluation, summary, saved)
    parts.accelerator.wait_for_everyone()
    return Run(folder, summary, saved)


def _save_average(parts: Parts, source: str, folder: Path) -> None:
    if parts.trainer.average is None:
        return
    with swapped(parts.model.network, parts.trainer.average.values):
        save_policy(parts.model, source, folder / "ema")


def _write_pictures(
    parts: Parts, folder: Path, evaluation: Evaluation, summary: dict[str, Any], saved: Path
) -> None:
    (folder / SAMPLES).mkdir(exist_ok=True)
    sheet = before_after(evaluation.before, evaluation.after, evaluation.prompts)
    save_picture(sheet, folder / SAMPLES / "before_after.png")
    config = parts.config
    write_report(
        folder / REPORT,
        title=f"{parts.trainer.method.name} · {without_folders(parts.reward.name)}",
        config_text=dump_values(without_folders_in(plain_config(config))),
        summary=summary,
        before=evaluation.before,
        after=evaluation.after,
        prompts=evaluation.prompts,
        records=read_records(folder),
        saved=Saved(
            saved.name,
            as_lora=saved.name == "lora",
            pipeline=type(parts.model.pipeline).__name__,
            model=without_folders(model_source(config.model)),
            prompt=evaluation.prompts[0] if parts.model.takes_prompts else None,
        ),
    )
