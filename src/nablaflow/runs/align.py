"""The whole job: train, measure, save, report. The command line and `nf.align` both end here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import (
    Progress,
)

from nablaflow.config.recipe import Config
from nablaflow.models import model_source
from nablaflow.models.rehearsal import rehearse
from nablaflow.report.words import warnings
from nablaflow.rewards import NamedReward
from nablaflow.runs.choices import as_chosen, undecided
from nablaflow.runs.finish import Run, finish
from nablaflow.runs.folder import check_run, open_run
from nablaflow.runs.progress import progress_display, starter
from nablaflow.runs.setup import Parts, fresh_accelerator, prepare
from nablaflow.runs.sheets import write_missing_sheet, write_sheet
from nablaflow.runs.stopping import (
    Interrupted,
    disk_full_is_the_users,
    stopped_at_once,
    stopping,
)
from nablaflow.runs.trust import remember
from nablaflow.storage.checkpoint import list_checkpoints
from nablaflow.storage.records import append_record, drop_records_after
from nablaflow.storage.whole import checkpoint_to_resume, retire_after
from nablaflow.training.stepper import Record


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
            with disk_full_is_the_users(folder), progress_display(console) as progress:
                _train(parts, folder, progress)
                with stopped_at_once():
                    result = finish(parts, folder, progress)
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


def _restore(parts: Parts, folder: Path) -> None:
    checkpoint = checkpoint_to_resume(folder)
    parts.accelerator.wait_for_everyone()  # all have read it, before any name is changed
    if checkpoint is not None:
        parts.trainer.restore(checkpoint)
    if parts.accelerator.is_main_process:
        drop_records_after(folder, parts.trainer.update)
        if checkpoint is not None:
            retire_after(folder, checkpoint.update)
            write_missing_sheet(parts, folder)


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
            write_sheet(parts, folder)

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
