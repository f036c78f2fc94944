"""A run's folder: what is in it, and what keeps it whole."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from nablaflow.errors import UserError
from nablaflow.training.config import Config
from nablaflow.training.overrides import dump_config

# What may change when a run is resumed; all of `evaluation` may as well, but for what is held out.
FREE = {
    "output_dir",
    "reward.batch",
    "reward.device",
    "reward.gradient_checkpointing",
    "reward.retries",
    "reward.timeout",
    "reward.url",
    "training.updates",
    "training.minutes",
    "training.micro_batch",
    "training.rollout_batch",
    "training.estimate_batch",
    "training.gradient_checkpointing",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.sample_every",
    "training.trackers",
}

CONFIG, METRICS, SUMMARY, REPORT = "config.yaml", "metrics.jsonl", "summary.json", "report.html"


def check_run(config: Config, *, resume: bool, overwrite: bool) -> None:
    """Find out, before any work, whether the run's folder may be used; writes nothing.

    Raises:
        UserError: it holds another run already, or there is nothing to resume.
    """
    run = config.output_dir
    _check_place(run)
    existing = run / CONFIG
    if resume:
        if not existing.is_file():
            raise UserError(f"--resume: {run} holds no run; leave --resume out to start one")
        _check_same(existing, dump_config(config))
        return
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        return
    if not overwrite:
        raise UserError(
            f"output_dir: {run} is not empty; use --resume, --overwrite or another folder"
        )
    if not existing.is_file():
        raise UserError(f"--overwrite: {run} holds no run of nablaflow; remove it by hand")


def _check_place(run: Path) -> None:
    """Whether the folder can be made: the nearest one that exists decides."""
    nearest = next(place for place in (run, *run.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"output_dir: cannot write {run} ({nearest} is not a directory)")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"output_dir: cannot write {run} (no permission in {nearest})")


def open_run(config: Config, *, resume: bool) -> Path:
    """Make the run's folder anew, or keep it for resuming; `check_run` has allowed it.

    Raises:
        UserError: it cannot be written.
    """
    run = config.output_dir
    try:
        if not resume:
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir(parents=True)
        write_whole(run / CONFIG, dump_config(config))
    except OSError as error:
        raise UserError(f"output_dir: cannot write {run} ({error.strerror})") from error
    return run


def _check_same(existing: Path, text: str) -> None:
    """A run goes on with its own settings, but for those that leave its figures alone."""
    old, new = yaml.safe_load(existing.read_text(encoding="utf-8")), yaml.safe_load(text)
    for part in _differences(old, new):
        measured = part.startswith("evaluation.") and part != "evaluation.hold_out"
        if part not in FREE and not measured:
            raise UserError(f"{part}: the run to resume has another value; use --overwrite")


def _differences(old: Any, new: Any, prefix: str = "") -> Iterable[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield prefix
        return
    for key in {**old, **new}:
        yield from _differences(
            old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key)
        )


def append_record(run: Path, record: dict[str, Any]) -> None:
    """One more line of metrics.jsonl; what is not finite is null, which JSON has."""
    finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
    with (run / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")


def read_records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, an object for each update; a line that a crash cut short is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line]


def drop_records_after(run: Path, update: int) -> None:
    """Forget the lines of updates that a resumed run will do again."""
    kept = [json.dumps(r) + "\n" for r in read_records(run) if r["update"] <= update]
    write_whole(run / METRICS, "".join(kept))


def write_whole(path: Path, text: str) -> None:
    """Write beside, then rename."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def peak_rss_mb() -> float:
    """Largest resident set of this process so far, MB of 2**20 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
