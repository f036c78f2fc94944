"""Carries out what is missing of a comparison, one run after the other, on the whole machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nablaflow.comparison.curve import by_rollout, curve_of_run
from nablaflow.comparison.entrants import BYSTANDERS, ENTRANTS, entrant_method
from nablaflow.comparison.gauge import Gauge, scored_bank
from nablaflow.comparison.outcome import Outcome, outcome_of, tilt_curve
from nablaflow.comparison.strength import at_its_strength
from nablaflow.comparison.study import ComparisonCell, ComparisonStudy
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.evaluation.bank import spread
from nablaflow.memory import in_parts
from nablaflow.methods import Networks, Untrained
from nablaflow.metrics.summary import Column
from nablaflow.progress import Progress, Work
from nablaflow.rewards import NamedReward, load, probe, require_gradient
from nablaflow.runs.accelerator import fresh_accelerator
from nablaflow.runs.folder import open_run
from nablaflow.runs.saved_config import goes_on
from nablaflow.runs.setup import Parts, prepare
from nablaflow.runs.stopping import Interrupted, stopping
from nablaflow.seeds import stream
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole
from nablaflow.storage.naming import KEY as NAMED
from nablaflow.storage.naming import name_of
from nablaflow.storage.records import append_record, drop_records_after
from nablaflow.storage.run_folder import CELL, POINTS
from nablaflow.storage.whole import checkpoint_to_resume, retire_after
from nablaflow.training.stepper import Record


def race(study: ComparisonStudy, progress: Progress, *, overwrite: bool = False) -> list[Outcome]:
    """Run what is missing; a finished cell is stored at once, a stopped one goes on next time.

    Returns:
        What was found for each reward, in their order.

    Raises:
        UserError: a mistake; of methods and rewards it is found before anything runs.
        Interrupted: after Ctrl-C, between two updates.
    """
    rewards = [load(reward) for reward in study.rewards]
    held_out = held_out_reward(study.held_out, embedded=True)
    for reward in rewards:
        _check_gradients(study, reward)
        if not overwrite:
            check_finished(study, reward.name)
    return [_race(study, reward, held_out, progress, overwrite) for reward in rewards]


def _race(
    study: ComparisonStudy,
    reward: NamedReward,
    held_out: NamedReward | None,
    progress: Progress,
    overwrite: bool,
) -> Outcome:
    gauge = _gauge(study, reward, held_out, progress)
    own = study.of_reward(reward.name, gauge.beta)
    todo = own.missing(overwrite=overwrite)
    done = len(own.cells) - len(todo)
    work = progress.start(f"runs for {reward.name}", len(own.cells), done=done)
    for cell in todo:
        _carry_out(own, cell, gauge, progress)
        work(1)
    curve = tilt_curve(gauge, own.room(reward.name), progress.start)
    return outcome_of(gauge, curve, [_finished(own, cell) for cell in own.cells])


def _finished(study: ComparisonStudy, cell: ComparisonCell) -> dict[str, Any]:
    found = study.finished(cell)
    if "curve" not in found:
        return found
    shared = study.config(cell).updates_per_rollout
    return {**found, "curve": by_rollout(found["curve"], shared)}


def check_finished(study: ComparisonStudy, reward: str) -> None:
    """Find out whether finished cells may stay, before thousands of images are scored.

    Where nobody says a beta, theirs is taken for it: the reference bank has yet to tell.

    Raises:
        UserError: one has figures of other settings, or cannot be read.
    """
    provisional = study.of_reward(reward, study.beta or 1.0)
    for cell in provisional.cells:
        if not provisional.path(cell).is_file():
            continue
        beta = study.beta or provisional.read(cell).get("beta")
        if isinstance(beta, int | float):
            study.of_reward(reward, beta).is_done(cell)


def held_out_reward(spec: str | None, *, embedded: bool) -> NamedReward | None:
    """A reward by its spec; without one, for the embedded model, whether the shape is shown."""
    if spec is None and not embedded:
        return None
    return load("shape_shown" if spec is None else spec)


def _check_gradients(study: ComparisonStudy, reward: NamedReward) -> None:
    """Refuse a method that cannot use the reward, before any other has run."""
    own = (name for name in study.methods if name not in BYSTANDERS)
    classes: dict[str, Any] = {name: entrant_method(name) for name in (*ENTRANTS, *own)}
    classes |= {name: make(1.0)[0] for name, make in BYSTANDERS.items()}
    if not any(classes[name].needs_reward_gradient for name in study.methods):
        return
    found = probe(reward, height=64, width=64, device="cpu", prompts=["a circle"])
    able = [name for name, method in classes.items() if not method.needs_reward_gradient]
    require_gradient(reward.name, found, able)


def _gauge(
    study: ComparisonStudy, reward: NamedReward, held_out: NamedReward | None, progress: Progress
) -> Gauge:
    provisional = study.of_reward(reward.name, study.beta or 1.0)
    config = provisional.config(ComparisonCell(reward.name, "best-of-n", study.first_seed))
    with fresh_accelerator():
        parts = prepare(config, config.output_dir, reward)
        bank = scored_bank(
            parts.model,
            (reward, held_out),
            config,
            parts.evaluated,
            parts.fingerprint,
            study.room(reward.name),
            progress.start,
            size=study.bank_size,
            beta=study.beta,
            specs=[reward.name, study.held_out],
        )
        parts.tell(study.bank_size.note(len(bank.samples), "without --n all are"))
        gauge = Gauge.of(reward, held_out, study.beta, parts.evaluated, bank)
        return gauge.with_metrics(parts.model, config.evaluation)


def _carry_out(
    study: ComparisonStudy, cell: ComparisonCell, gauge: Gauge, progress: Progress
) -> None:
    config = study.config(cell)
    with fresh_accelerator():
        parts = prepare(config, config.output_dir, gauge.reward)
        if cell.trained:
            found = _train(study, cell, parts, gauge, progress)
        else:
            found = {"points": _sample_all(cell, parts, gauge, progress)}
    study.store(cell, found)


# --- one that trains ------------------------------------------------------------------------------


def _train(
    study: ComparisonStudy, cell: ComparisonCell, parts: Parts, gauge: Gauge, progress: Progress
) -> dict[str, Any]:
    parts.trainer.clock = fair_clock()
    with _opened(parts) as (folder, points):
        trainer = parts.trainer
        work = progress.start(
            str(cell)[:40], trainer.total, done=trainer.done, unit="s", inner=True
        )
        diverged = _train_in(study, parts, gauge, work, folder, points)
        work.end()
    own = {}
    if study.calibrate and points and not diverged:
        own = {"calibrated": at_its_strength(parts, gauge, points[-1], progress.start)}
    return {
        "points": points,
        **own,
        "curve": curve_of_run(folder, parts.config.updates_per_rollout, parts.trainer.seconds),
        "updates": parts.trainer.update,
        "seconds": parts.trainer.seconds,
        "diverged": diverged,
    }


def _train_in(
    study: ComparisonStudy,
    parts: Parts,
    gauge: Gauge,
    work: Work,
    folder: Path,
    points: list[dict[str, Any]],
) -> str | None:
    """Add to ``points`` what is measured on the way; why it ended early, if it did."""
    config, trainer = parts.config, parts.trainer
    times = [60.0 * study.minutes * (i + 1) / study.measurements for i in range(study.measurements)]
    pressed: list[bool] = []

    def on_update(record: Record) -> bool:
        append_record(folder, record)
        work.reach(trainer.done, f"reward {record['reward_mean']:.3f}")
        if len(points) < len(times) and trainer.seconds >= times[len(points)]:
            figures = gauge.measure_policy(parts.model, config, lambda done: None)
            points.append({"update": trainer.update, "seconds": trainer.seconds, **figures})
            _keep_points(folder, points)
            trainer.save(folder)
        return bool(pressed)

    with stopping(pressed):
        trainer.begin()
        try:
            trainer.train(folder, on_update, on_saved=lambda: None)
        except TrainingStopped as error:
            return str(error)
    if pressed and not trainer.finished:
        raise Interrupted("stopped; the same command goes on from here")
    return None


def fair_clock() -> Callable[[], float]:
    """The processor's time of this process where one thread computes, else the wall clock's.

    The first does not run while other work has the core, so a comparison of methods on a machine
    that is not idle is fair with ``OMP_NUM_THREADS=1``.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


@contextmanager
def _opened(parts: Parts) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """A folder for the run, fresh or as it was left, and the points measured so far.

    A run that was stopped with other settings is started anew.
    """
    folder = parts.config.output_dir
    resume = not (folder / CELL).is_file() and goes_on(parts.config)
    with open_run(parts.config, resume=resume, overwrite=True):
        checkpoint = checkpoint_to_resume(folder) if resume else None
        if checkpoint is None:
            yield folder, []
            return
        parts.trainer.restore(checkpoint)
        drop_records_after(folder, checkpoint.update)
        retire_after(folder, checkpoint.update)
        yield folder, [p for p in _points(folder) if p["update"] <= checkpoint.update]


def _keep_points(folder: Path, points: list[dict[str, Any]]) -> None:
    """What an unfinished run has been measured at, with the run's name."""
    write_whole(folder / POINTS, checksums.sealed({NAMED: name_of(folder), "points": points}))


def _points(folder: Path) -> list[dict[str, Any]]:
    path = folder / POINTS
    try:
        found = checksums.unseal(path.read_text()) if path.is_file() else {"points": []}
        points, name = found["points"], found.get(NAMED)
    except (ValueError, KeyError):
        raise UserError(f"--out: {path} is damaged; remove {folder}, and it is run again") from None
    if name not in (None, name_of(folder)):  # earlier versions have none
        raise UserError(f"--out: {path} is of another run; remove {folder}, and it is run again")
    return points


# --- those that train nothing ---------------------------------------------------------------------


def _sample_all(
    cell: ComparisonCell, parts: Parts, gauge: Gauge, progress: Progress
) -> list[dict[str, Any]]:
    """A point for each of an untrained reference's settings."""
    points, ways = [], BYSTANDERS[cell.method](gauge.beta)
    work = progress.start(str(cell)[:40], len(ways) * parts.config.evaluation.n, inner=True)
    for way in ways:
        way.check(parts.model.process)
        figures = _sample(way, parts, gauge, work)
        points.append({"settings": way.model_dump_named(), **figures})
    return points


def _sample(way: Untrained, parts: Parts, gauge: Gauge, shown: Work) -> Column:
    settings, prompts = parts.config.evaluation, gauge.prompts
    networks = Networks(parts.model, gauge.reward, None, None)
    index = spread(settings.n, len(prompts)).tolist()

    def work(rows: slice) -> torch.Tensor:
        numbers = range(rows.start, rows.stop)
        generators = [
            torch.Generator().manual_seed(stream(settings.seed, "evaluation", row))
            for row in numbers
        ]
        texts = [prompts[index[row]] for row in numbers]
        found = way.sample(networks, texts, generators).cpu()
        shown(len(found))
        return found

    states = torch.cat(list(in_parts(work, settings.n, settings.batch, "evaluation.batch")))
    return gauge.measure(parts.model, states, settings.batch, lambda done: None)
