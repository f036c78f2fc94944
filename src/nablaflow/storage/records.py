"""metrics.jsonl: an object for each update."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nablaflow.storage.files import append_line, sync, write_whole
from nablaflow.storage.run_folder import METRICS

Record = dict[str, Any]


def append_record(run: Path, record: Record) -> None:
    """One more line of metrics.jsonl; what is not finite is null, which JSON has."""
    append_line(run / METRICS, json.dumps(_in_json(record)))


def complete_record(run: Path, update: int, figures: Record) -> None:
    """Further figures of an update whose line is there."""
    more = _in_json(figures)
    lines = read_records(run)
    _write(run, [line | more if line["update"] == update else line for line in lines])


def _in_json(record: Record) -> Record:
    return {k: v if math.isfinite(v) else None for k, v in record.items()}


def _write(run: Path, records: Sequence[Record]) -> None:
    write_whole(run / METRICS, "".join(json.dumps(record) + "\n" for record in records))


def sync_records(run: Path) -> None:
    """Wait until the disk has the lines: a checkpoint that counts them comes after them."""
    if (run / METRICS).is_file():
        sync(run / METRICS)


def read_records(run: Path) -> list[Record]:
    """The objects, in order; a line that is none, cut short by a crash or damaged, is left out."""
    return [record for record in _lines(run) if record is not None]


def _lines(run: Path) -> list[Record | None]:
    """What each line holds; None for a damaged one."""
    path = run / METRICS
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what comes after the last end is no whole line
    return [_record(line) for line in lines if line]


def _record(line: bytes) -> Record | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("update"), int)
    return found if whole and all(_is_figure(value) for value in found.values()) else None


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)


def drop_records_after(run: Path, update: int) -> None:
    """Forget the lines of updates that a resumed run will do again; lost ones are named."""
    lines = _lines(run)
    kept = [record for record in lines if record is not None and record["update"] <= update]
    lost = update - len({record["update"] for record in kept})
    if lost or None in lines:
        print(
            f"{run / METRICS} is damaged: lines of {lost} updates are missing; the checkpoint is "
            "whole, and the run goes on",
            file=sys.stderr,
        )
    _write(run, kept)
