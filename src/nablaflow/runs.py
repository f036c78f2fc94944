"""The whole job: train, measure, save, report. The command line and `nf.align` both end here."""

from __future__ import annotations

import errno
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from nablaflow.report import before_after, grid, write_report
from nablaflow.rewards import NamedReward
from nablaflow.training.bank import sample_states
from nablaflow.training.checkpoint import best_folder, list_checkpoints, load_checkpoint
from nablaflow.training.config import Config
from nablaflow.training.evaluation import Evaluation, evaluate
from nablaflow.training.memory import in_parts
from nablaflow.training.overrides import dump_config
from nablaflow.training.run_folder import (
    REPORT,
    SUMMARY,
    append_record,
    check_run,
    drop_records_after,
    open_run,
    peak_rss_mb,
    read_records,
    write_whole,
)
from nablaflow.training.setup import Parts, fresh_accelerator, model_source, prepare
from nablaflow.training.stepper import Record

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
def _disk_full_is_the_users(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"output_dir: cannot write {folder} ({error.strerror}); free some space and run again "
            "with --resume, the last checkpoint is whole"
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
    check_run(config, resume=resume, overwrite=overwrite)
    with fresh_accelerator():
        parts = prepare(config, folder, reward)
        if not resume:
            # Before the folder, since they may refuse.
            _rehearse(parts)
            _begin_guard(parts, console)
        if parts.accelerator.is_main_process:
            folder = open_run(config, resume=resume)
        parts.accelerator.wait_for_everyone()
        if resume:
            _restore(parts, folder)
        with _disk_full_is_the_users(folder), progress_display(console) as progress:
            _train(parts, folder, progress)
            result = _finish(parts, folder, progress)
        parts.accelerator.end_training()  # of the trackers, and of the group of processes
    return result


def _rehearse(parts: Parts) -> None:
    """Find out on the main process what would otherwise fail at the end."""
    if not parts.accelerator.is_main_process:
        return
    run = parts.config.output_dir.absolute()
    place = next(folder for folder in run.parents if folder.is_dir())
    note = rehearse(parts.model, model_source(parts.config), place)
    if note is not None:
        print(note, file=sys.stderr)


def _begin_guard(parts: Parts, console: Console) -> None:
    if parts.trainer.guard is None:
        return
    with progress_display(console) as progress:
        parts.trainer.begin_guard(_looking(parts, progress))


def _looking(parts: Parts, progress: Progress) -> Callable[[int], None]:
    """The guard's bar: it fills anew at each look, and is seen only until it is full."""
    if parts.trainer.guard is None or not parts.accelerator.is_main_process:
        return lambda done: None
    total = parts.trainer.guard.settings.n
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
    found = list_checkpoints(folder)
    if found:
        parts.trainer.restore(load_checkpoint(found[-1]))
    if parts.accelerator.is_main_process:
        drop_records_after(folder, parts.trainer.update)


def _train(parts: Parts, folder: Path, progress: Progress) -> None:
    trainer, accelerator, config = parts.trainer, parts.accelerator, parts.config
    shown = accelerator.is_main_process
    accelerator.init_trackers("nablaflow", {"method": parts.trainer.method.name})
    task = progress.add_task("train", total=trainer.total, completed=trainer.done, visible=shown)
    pressed: list[bool] = []
    on_look = _looking(parts, progress)
    trainer.begin_guard(on_look)

    def on_update(record: Record) -> bool:
        if shown:
            append_record(folder, record)
            accelerator.log({k: v for k, v in record.items() if k != "update"}, step=trainer.update)
            told = f"train: reward {record['reward_mean']:.3f}, loss {record['loss']:.2g}"
            told += _guard_told(parts)
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
    (folder / "samples").mkdir(exist_ok=True)
    sheet = grid(torch.cat(list(images)), columns=4)
    sheet.save(folder / "samples" / f"step-{parts.trainer.update:06d}.png")


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
    source = model_source(parts.config)
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
    (folder / "samples").mkdir(exist_ok=True)
    sheet = before_after(evaluation.before, evaluation.after, evaluation.prompts)
    sheet.save(folder / "samples" / "before_after.png")
    config = parts.config
    write_report(
        folder / REPORT,
        title=f"{parts.trainer.method.name} · {parts.reward.name}",
        config_text=dump_config(config),
        summary=summary,
        before=evaluation.before,
        after=evaluation.after,
        prompts=evaluation.prompts,
        records=read_records(folder),
        lora_path=saved.resolve() if saved.name == "lora" else None,
        model=model_source(config),
    )
