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
    lines = read_records(run, aloud=False)
    _write(run, [line | more if line["update"] == update else line for line in lines])


def _in_json(record: Record) -> Record:
    return {k: v if math.isfinite(v) else None for k, v in record.items()}


def _write(run: Path, records: Sequence[Record]) -> None:
    write_whole(run / METRICS, "".join(json.dumps(record) + "\n" for record in records))


def sync_records(run: Path) -> None:
    """Wait until the disk has the lines: a checkpoint that counts them comes after them."""
    if (run / METRICS).is_file():
        sync(run / METRICS)


def read_records(run: Path, *, aloud: bool = True) -> list[Record]:
    """The objects in the order of their updates, the last line of each.

    A line that is none, cut short by a crash or damaged, is left out.

    Args:
        aloud: whether it is said on stderr where the file is not as a run writes it.
    """
    lines = _lines(run)
    updates = [record["update"] for record in lines if record is not None]
    if aloud and (faults := _faults(lines, max(updates, default=0))):
        print(f"{run / METRICS} is damaged: {faults}", file=sys.stderr)
    return _in_order(lines)


def _in_order(lines: Sequence[Record | None]) -> list[Record]:
    last = {record["update"]: record for record in lines if record is not None}
    return [last[update] for update in sorted(last)]


def _faults(lines: Sequence[Record | None], last: int) -> str:
    """How they differ from one line for each update, from the first to ``last``; empty: nowise."""
    updates = [record["update"] for record in lines if record is not None]
    once = sorted(set(updates))
    lost, none = len(set(range(1, last + 1)) - set(once)), lines.count(None)
    told = [f"lines of {lost} updates are missing"] if lost or none else []
    if len(updates) > len(once):
        more = len(updates) - len(once)
        told.append(f"{more} too many, of which the last of an update counts")
    if list(dict.fromkeys(updates)) != once:
        told.append("out of order, and read by their updates")
    return ", ".join(told)


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
    """Forget the lines of updates that a resumed run will do again; damage is told, and mended."""
    lines = [line for line in _lines(run) if line is None or line["update"] <= update]
    if faults := _faults(lines, update):
        print(
            f"{run / METRICS} is damaged: {faults}; the checkpoint is whole, and the run goes on",
            file=sys.stderr,
        )
    _write(run, _in_order(lines))
