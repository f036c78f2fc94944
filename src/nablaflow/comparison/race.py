"""Carries out what is missing of a comparison, one run after the other, on the whole machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.progress import Progress

from nablaflow.comparison.entrants import BYSTANDERS, ENTRANTS
from nablaflow.comparison.gauge import Gauge, scored_bank
from nablaflow.comparison.outcome import Outcome, outcome_of, tilt_curve
from nablaflow.comparison.study import CELL, Cell, Study, read_cell
from nablaflow.errors import TrainingStopped
from nablaflow.methods import Networks, Untrained
from nablaflow.metrics.summary import Column
from nablaflow.rewards import NamedReward, load, probe, require_gradient
from nablaflow.runs import Interrupted, starter, stopping
from nablaflow.training.bank import spread
from nablaflow.training.checkpoint import list_checkpoints, load_checkpoint
from nablaflow.training.config import Config
from nablaflow.training.memory import in_parts
from nablaflow.training.overrides import dump_config
from nablaflow.training.rollout import stream
from nablaflow.training.run_folder import (
    CONFIG,
    append_record,
    drop_records_after,
    open_run,
    read_records,
    write_whole,
)
from nablaflow.training.setup import Parts, fresh_accelerator, prepare
from nablaflow.training.stepper import Record

POINTS = "points.json"


def race(study: Study, progress: Progress, *, overwrite: bool = False) -> list[Outcome]:
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
    return [_race(study, reward, held_out, progress, overwrite) for reward in rewards]


def _race(
    study: Study,
    reward: NamedReward,
    held_out: NamedReward | None,
    progress: Progress,
    overwrite: bool,
) -> Outcome:
    gauge = _gauge(study, reward, held_out, progress)
    own = replace(study, rewards=(reward.name,))
    todo = [c for c in own.cells if not own.is_done(c, gauge.beta, overwrite=overwrite)]
    task = progress.add_task(reward.name, total=len(own.cells))
    progress.advance(task, len(own.cells) - len(todo))
    for cell in todo:
        _carry_out(own, cell, gauge, progress)
        progress.advance(task)
    curve = tilt_curve(gauge, own.room(reward.name), starter(progress))
    return outcome_of(gauge, curve, [read_cell(own.folder(cell) / CELL) for cell in own.cells])


def held_out_reward(spec: str | None, *, embedded: bool) -> NamedReward | None:
    """A reward by its spec; without one, for the embedded model, whether the shape is shown."""
    if spec is None and not embedded:
        return None
    return load(spec or "shape_shown")


def _check_gradients(study: Study, reward: NamedReward) -> None:
    """Refuse a method that cannot use the reward, before any other has run."""
    classes: dict[str, Any] = {name: ENTRANTS[name].method(1.0) for name in ENTRANTS}
    classes |= {name: make(1.0)[0] for name, make in BYSTANDERS.items()}
    if not any(classes[name].needs_reward_gradient for name in study.methods):
        return
    found = probe(reward, height=64, width=64, device="cpu", prompts=["a circle"])
    able = [name for name, method in classes.items() if not method.needs_reward_gradient]
    require_gradient(reward.name, found, able)


def _gauge(
    study: Study, reward: NamedReward, held_out: NamedReward | None, progress: Progress
) -> Gauge:
    config = study.config(Cell(reward.name, "best-of-n", study.first_seed), study.beta or 1.0)
    with fresh_accelerator():
        parts = prepare(config, config.output_dir, reward)
        bank = scored_bank(
            parts.model,
            (reward, held_out),
            config,
            parts.evaluated,
            parts.fingerprint,
            study.room(reward.name),
            starter(progress),
        )
    return Gauge.of(reward, held_out, study.beta, parts.evaluated, bank)


def _carry_out(study: Study, cell: Cell, gauge: Gauge, progress: Progress) -> None:
    config = study.config(cell, gauge.beta)
    task = progress.add_task(str(cell)[:40], total=None)
    with fresh_accelerator():
        parts = prepare(config, config.output_dir, gauge.reward)
        if cell.trained:
            found = _train(study, parts, gauge, progress, task)
        else:
            found = {"points": _sample_all(cell, parts, gauge)}
    study.store(cell, gauge.beta, found)
    progress.remove_task(task)


# --- one that trains ------------------------------------------------------------------------------


def _train(
    study: Study, parts: Parts, gauge: Gauge, progress: Progress, task: Any
) -> dict[str, Any]:
    config, trainer = parts.config, parts.trainer
    trainer.clock = fair_clock()
    folder, points = _open(parts)
    times = [60.0 * study.minutes * (i + 1) / study.measurements for i in range(study.measurements)]
    progress.update(task, total=trainer.total)
    pressed: list[bool] = []

    def on_update(record: Record) -> bool:
        append_record(folder, record)
        progress.update(task, completed=trainer.done)
        if len(points) < len(times) and trainer.seconds >= times[len(points)]:
            figures = gauge.measure_policy(parts.model, config, lambda done: None)
            points.append({"update": trainer.update, "seconds": trainer.seconds, **figures})
            write_whole(folder / POINTS, json.dumps(points))
            trainer.save(folder)
        return bool(pressed)

    diverged = None
    with stopping(pressed):
        trainer.begin_trust()
        try:
            trainer.train(folder, on_update, on_saved=lambda: None)
        except TrainingStopped as error:
            diverged = str(error)
    if pressed and not trainer.finished:
        raise Interrupted("stopped; the same command goes on from here")
    return {
        "points": points,
        "curve": curve_of_run(folder),
        "updates": trainer.update,
        "seconds": trainer.seconds,
        "diverged": diverged,
    }


def fair_clock() -> Callable[[], float]:
    """The processor's time of this process where one thread computes, else the wall clock's.

    The first does not run while other work has the core, so a comparison of methods on a machine
    that is not idle is fair with ``OMP_NUM_THREADS=1``.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


def _open(parts: Parts) -> tuple[Path, list[dict[str, Any]]]:
    """A folder for the run, fresh or as it was left, and the points measured so far.

    A run that was stopped with other settings is started anew.
    """
    config = parts.config
    found = list_checkpoints(config.output_dir)
    if not found or (config.output_dir / CELL).is_file() or not _same_run(config):
        shutil.rmtree(config.output_dir, ignore_errors=True)
        return open_run(config, resume=False), []
    checkpoint = load_checkpoint(found[-1])
    parts.trainer.restore(checkpoint)
    drop_records_after(config.output_dir, checkpoint.update)
    path = config.output_dir / POINTS
    points = json.loads(path.read_text()) if path.is_file() else []
    return config.output_dir, [p for p in points if p["update"] <= checkpoint.update]


def _same_run(config: Config) -> bool:
    text = (config.output_dir / CONFIG).read_text(encoding="utf-8")
    saved, own = yaml.safe_load(text), yaml.safe_load(dump_config(config))
    return {**saved, "output_dir": None} == {**own, "output_dir": None}


def curve_of_run(folder: Path) -> dict[str, list[float]]:
    """Reward of the rollouts by seconds of training."""
    seconds, rewards, spent = [], [], 0.0
    for record in read_records(folder):
        seconds.append(round(spent, 3))  # a rollout is of the policy before its update
        rewards.append(record["reward_mean"])
        spent += record["seconds"]
    return {"seconds": seconds, "reward": rewards}


# --- those that train nothing ---------------------------------------------------------------------


def _sample_all(cell: Cell, parts: Parts, gauge: Gauge) -> list[dict[str, Any]]:
    """A point for each of an untrained reference's settings."""
    points = []
    for way in BYSTANDERS[cell.method](gauge.beta):
        way.check(parts.model.process)
        figures = _sample(way, parts, gauge)
        points.append({"settings": way.model_dump_named(), **figures})
    return points


def _sample(way: Untrained, parts: Parts, gauge: Gauge) -> Column:
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
        return way.sample(networks, texts, generators).cpu()

    states = torch.cat(list(in_parts(work, settings.n, settings.batch, "evaluation.batch")))
    return gauge.measure(parts.model, states, settings.batch, lambda done: None)
