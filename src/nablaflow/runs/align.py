"""The whole job: train, measure, save, report. The command line and `nf.align` both end here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models import LivePipeline, log_flow_size
from nablaflow.models.rehearsal import rehearse
from nablaflow.progress import Progress, Work, show
from nablaflow.rewards import NamedReward
from nablaflow.runs.accelerator import fresh_accelerator, trackers_of
from nablaflow.runs.agreement import check_same
from nablaflow.runs.begun_with import told_of_marks, with_checksums
from nablaflow.runs.callback import Callback, OnUpdate
from nablaflow.runs.choices import as_chosen
from nablaflow.runs.finish import finish
from nablaflow.runs.folder import check_run, open_run
from nablaflow.runs.launch import Launch
from nablaflow.runs.lines import guard_told, new_warnings, nothing_left
from nablaflow.runs.own_code import told_of_code
from nablaflow.runs.pretrained import of_live, with_mark
from nablaflow.runs.run import Run
from nablaflow.runs.saved_config import saved_config
from nablaflow.runs.setup import Parts, prepare
from nablaflow.runs.sheets import write_missing_sheet, write_sheet
from nablaflow.runs.stopping import (
    Interrupted,
    disk_full_is_the_users,
    stopped_at_once,
    stopping,
)
from nablaflow.runs.trust import remember
from nablaflow.storage.files import append_line
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.records import append_record, complete_record, drop_records_after
from nablaflow.storage.run_folder import LOG, undo_set_aside
from nablaflow.storage.scratch import check_holds, check_room
from nablaflow.storage.whole import checkpoint_to_resume, retire_after
from nablaflow.training.held import saved_held
from nablaflow.training.processes import by_main, on_any
from nablaflow.training.stepper import Record


def run(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    reward: NamedReward | None = None,
    pipeline: LivePipeline | None = None,
    on_update: OnUpdate | None = None,
) -> Run:
    """Carry out a configuration.

    Args:
        reward: in place of the configuration's, which then only names it.
        pipeline: the user's own, in place of the configuration's model.
        on_update: told the record of each update; see `nablaflow.runs.callback`.

    Raises:
        UserError: a mistake in it; nothing was written unless the folder was fit to be used.
        TrainingStopped: training cannot go on; the last checkpoint is whole.
        Interrupted: after Ctrl-C, with a checkpoint.
    """
    if resume and overwrite:
        raise UserError(
            "--overwrite: it replaces the run that --resume goes on with; give one of the two"
        )
    launch = Launch.read(os.environ, config.training)  # one that is none says so before all else
    if launch.goes_on(config.output_dir):
        resume, overwrite = True, False
    console = console or Console(stderr=True)
    folder, callback = config.output_dir, Callback(on_update)
    if resume:
        undo_set_aside(folder)
    found = list_checkpoints(folder) if resume else []
    config, saved = _settled(config, pipeline, resume=resume, goes_on=bool(found))
    check_run(config, resume=resume, overwrite=overwrite)
    launch.begin(folder)
    with fresh_accelerator():
        checkpoint = found[-1] if found else None
        with show(console) as progress:  # of what has to be found first
            parts = prepare(config, folder, reward, checkpoint, progress.start, pipeline, ends=True)
        check_same({"--resume": resume})
        if not resume:
            # Before the folder, since they may refuse.
            with _progress(parts, console) as progress:
                _rehearse(parts, progress)
                _begin(parts, progress)
        folder = folder.absolute()  # a program may go to another folder while it is told of updates
        opened = _opened(parts, launch, resume=resume, overwrite=overwrite)
        with opened, trackers_of(parts.accelerator):
            if resume:
                _restore(parts, folder)
            update = parts.trainer.update
            with disk_full_is_the_users(folder):
                code = by_main(parts.accelerator, lambda: told_of_code(config, folder, update))
            marks = (*told_of_marks(config, saved), *code)
            parts.tell((*parts.notes, *parts.choices, *marks, *nothing_left(parts)))
            with disk_full_is_the_users(folder), _progress(parts, console, folder) as progress:
                _train(parts, folder, progress, callback)
                with stopped_at_once():
                    result = finish(parts, folder, progress)
        parts.accelerator.state.destroy_process_group()
    return replace(result, live=pipeline, reward=reward)


def _settled(
    config: Config, pipeline: LivePipeline | None, *, resume: bool, goes_on: bool
) -> tuple[Config, Config | None]:
    """With what the run has chosen, and the checksums that it records; and what it was begun with.

    Args:
        goes_on: whether there is a checkpoint.
    """
    if pipeline is not None:
        config = of_live(config, pipeline)
    if resume:
        config = as_chosen(config)
    if pipeline is None:
        config = with_mark(config)
    saved = saved_config(config) if goes_on else None
    return with_checksums(config, saved), saved


def _progress(parts: Parts, console: Console, folder: Path | None = None) -> Progress:
    """What the main process shows, and writes to the folder's log where there is one already."""
    if not parts.accelerator.is_main_process:
        return Progress()
    return show(console, folder and (lambda line: append_line(folder / LOG, line)))


def _rehearse(parts: Parts, progress: Progress) -> None:
    """Find out on the main process what would otherwise fail at the end."""
    by_main(parts.accelerator, lambda: _rehearsed(parts, progress))


def _rehearsed(parts: Parts, progress: Progress) -> None:
    run = parts.config.output_dir.absolute()
    place = next(folder for folder in (run, *run.parents) if folder.is_dir())
    saved = saved_held(parts.config, parts.model, parts.trainer.flow, parts.trainer.core)
    if parts.config.calibrates:  # which keeps what was trained beside the policy
        saved = (*saved, saved[0])
    told = progress.start("rehearse sampling and saving", 1)
    check_holds(place)
    check_room(place, saved)
    note = rehearse(parts.model, parts.source, place)
    told(1)
    if note is not None:
        print(note, file=sys.stderr)


@contextmanager
def _opened(parts: Parts, launch: Launch, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """The run's folder, which the main process holds."""
    given = {"resume": resume, "overwrite": overwrite, "launch": launch.name}
    with ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(open_run(parts.config, **given))
            remember(parts.config)

        by_main(parts.accelerator, hold)
        yield


def _begin(parts: Parts, progress: Progress) -> None:
    """What is measured on the reference before the first update."""
    _find(parts, progress)
    if parts.trainer.guard is not None:
        parts.trainer.begin_guard(_looking(parts, progress))


def _find(parts: Parts, progress: Progress) -> None:
    """What the method needs of the reference, and lines about what was found.

    Raises:
        UserError: it took all the time that there is.
    """
    beginning, networks = parts.trainer.beginning, parts.trainer.networks
    of_gamma, of_value = beginning.gamma_work, beginning.log_flow_work
    parts.trainer.begin(partial(progress.start, inner=True))
    if of_gamma and networks.measured_gamma is not None:
        told = _by_step(networks.measured_gamma)
        progress.say(f"gamma, trust in the predicted reward, k = 1 ... K: {told}")
    if of_value and networks.log_flow is not None:
        progress.say(log_flow_size(networks.model, networks.log_flow.network))
        ahead, mixed = (_by_step(row) for row in networks.log_flow.explained)
        progress.say(f"nats of the tilt that the predicted reward tells, k = 1 ... K: {ahead}")
        progress.say(f"the same with the log flow, on samples held out from its fit: {mixed}")
    if (of_gamma or of_value) and parts.trainer.finished:
        minutes = parts.config.training.minutes
        rest = ", or use method.value=forward-looking" if of_value else ""
        raise UserError(
            f"training.minutes: all of {minutes:g} went into what the method finds of the "
            f"reference first; give it more{rest}"
        )


def _by_step(table: Tensor) -> str:
    return " ".join(f"{value:.2f}" for value in table[1:].tolist())


def _looking(parts: Parts, progress: Progress) -> Callable[[int], None]:
    """Told how many more images the guard has looked at; each look is a piece of work."""
    guard = parts.trainer.guard
    if guard is None:
        return lambda more: None
    work: Work | None = None

    def told(more: int) -> None:
        nonlocal work
        if work is None or work.ended:
            work = progress.start("guard", guard.n, inner=True)
        work(more)

    return told


def _restore(parts: Parts, folder: Path) -> None:
    checkpoint = checkpoint_to_resume(folder)
    # All have read it, and the same, before any name is changed.
    check_same({"checkpoint": checkpoint and checkpoint.update})
    if checkpoint is not None:
        parts.trainer.restore(checkpoint)

    def put_right() -> None:
        drop_records_after(folder, parts.trainer.update)
        if checkpoint is not None:
            retire_after(folder, checkpoint.update)

    by_main(parts.accelerator, put_right)
    if checkpoint is not None:
        write_missing_sheet(parts, folder)


def _train(parts: Parts, folder: Path, progress: Progress, callback: Callback) -> None:
    trainer, accelerator, config = parts.trainer, parts.accelerator, parts.config
    accelerator.init_trackers("nablaflow", {"method": parts.trainer.method.name})
    unit = "" if config.training.minutes is None else "s"
    work = progress.start("train", trainer.total, done=trainer.done, unit=unit)
    pressed: list[bool] = []
    warned: set[str] = set()
    on_look = _looking(parts, progress)
    _find(parts, progress)
    trainer.begin_guard(on_look)

    def on_update(record: Record) -> bool:
        return by_main(accelerator, lambda: tell(record)) or bool(pressed)

    def tell(record: Record) -> bool:
        append_record(folder, record)
        accelerator.log({k: v for k, v in record.items() if k != "update"}, step=trainer.update)
        for line in new_warnings(parts, warned):
            progress.say(line)
        told = f"reward {record['reward_mean']:.3f}, loss {record['loss']:.2g}"
        work.reach(trainer.done, told + guard_told(parts))
        return callback(record)

    def on_saved() -> None:
        if trainer.update % config.training.sample_every == 0:
            write_sheet(parts, folder)

    with stopping(pressed):
        if owed := trainer.owed_look(folder, on_look):
            by_main(accelerator, lambda: complete_record(folder, trainer.update, owed))
            trainer.save(folder)
        trainer.train(folder, on_update, on_saved, on_look)
    callback.settle(trainer.update, folder)
    if on_any(accelerator, bool(pressed)) and not trainer.finished:
        accelerator.state.destroy_process_group()
        raise Interrupted(f"stopped after update {trainer.update}; go on with --resume")
    work.end()
