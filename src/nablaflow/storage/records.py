"""metrics.jsonl: an object for each update."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nablaflow.storage.files import append_line, sync, write_whole
from nablaflow.storage.lines import Record, in_order, lines_of
from nablaflow.storage.manifest import known_lines
from nablaflow.storage.run_folder import METRICS

__all__ = ["Record", "append_record", "complete_record", "drop_records_after", "read_records"]


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

    A line that is none, cut short by a crash, damaged, or of another run is left out.

    Args:
        aloud: whether it is said on stderr where the file is not as a run writes it.
    """
    found, faults = records_and_faults(run)
    if aloud and faults:
        print(f"{run / METRICS} is damaged: {faults}", file=sys.stderr)
    return found


def records_and_faults(run: Path) -> tuple[list[Record], str]:
    """What `read_records` finds, and how the file is not as a run writes it; empty: nowise."""
    found = _read(run)
    return in_order(found.lines), found.faults(max([found.known, *found.updates]))


@dataclass(frozen=True)
class _Lines:
    """What metrics.jsonl holds.

    Attributes:
        lines: None for one that is damaged, or not this run's.
        others: how many are not this run's, or were changed.
        known: updates up to which a checkpoint knows them.
    """

    lines: Sequence[Record | None]
    others: int
    known: int

    @property
    def updates(self) -> list[int]:
        return [record["update"] for record in self.lines if record is not None]

    def faults(self, last: int) -> str:
        """How they differ from one line for each update, from 1 to ``last``; empty: nowise."""
        updates = self.updates
        once = sorted(set(updates))
        lost = last - sum(1 <= update <= last for update in once)
        none = self.lines.count(None)
        told = [f"lines of {lost} updates are missing"] if lost or none else []
        if self.others:
            told.append(f"{self.others} that are there are not what this run wrote")
        if len(updates) > len(once):
            more = len(updates) - len(once)
            told.append(f"{more} too many, of which the last of an update counts")
        if list(dict.fromkeys(updates)) != once:
            told.append("out of order, and read by their updates")
        return ", ".join(told)


def _read(run: Path, most: int | None = None) -> _Lines:
    """Marks and lines of one moment: another run may be taking the place of this one.

    Args:
        most: updates up to which they are to be known.
    """
    marks = known_lines(run, most)
    while True:
        found = lines_of(run)
        if (now := known_lines(run, most)) == marks:
            break
        marks = now
    own = [line if line is None or marks.are_of(line) else None for line in found]
    return _Lines(own, own.count(None) - found.count(None), marks.last if marks.text else 0)


def drop_records_after(run: Path, update: int) -> None:
    """Forget the lines of updates that a resumed run will do again; damage is told, and mended."""
    found = _read(run, most=update)
    lines = [line for line in found.lines if line is None or line["update"] <= update]
    if faults := _Lines(lines, found.others, found.known).faults(update):
        print(
            f"{run / METRICS} is damaged: {faults}; the checkpoint is whole, and the run goes on",
            file=sys.stderr,
        )
    _write(run, in_order(lines))
