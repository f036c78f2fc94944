"""The lines of metrics.jsonl, and the marks by which a checkpoint knows those of its own run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow.storage import checksums
from nablaflow.storage.run_folder import METRICS

Record = dict[str, Any]
LENGTH = 8
"""Characters of a mark: the first ones of a SHA-256."""
MOST = 2**16
"""Lines that are marked: a manifest is read by whoever only looks at a run."""
_NONE = "-" * LENGTH  # of an update without a line
_LATER = "guard_"  # figures that may come to a line after its checkpoint, see `complete_record`


def lines_of(run: Path) -> list[Record | None]:
    """What each line holds; None for a damaged one."""
    return [_record(line) for line in _whole_lines(run)]


def _whole_lines(run: Path) -> list[bytes]:
    path = run / METRICS
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what comes after the last end is no whole line
    return [line for line in lines if line]


@dataclass(frozen=True)
class Marks:
    """What a checkpoint knows the lines of its run by.

    Attributes:
        text: the marks, one after the other.
        last: the update that the last one is of.
    """

    text: str = ""
    last: int = 0

    def are_of(self, record: Record) -> bool:
        """Whether a line is what the run wrote, as far as they go."""
        start = len(self.text) - LENGTH * (self.last + 1 - record["update"])
        known = self.text[start : start + LENGTH] if start >= 0 else ""
        return known in ("", _NONE, mark_of(record))


def marks_of(run: Path, update: int, known: Marks) -> str:
    """The marks of the lines up to an update, one after the other; of the newest `MOST`.

    Args:
        known: those of the checkpoint before it. Their lines are not read again, of which a long
            run has many, and which may have been changed since.
    """
    before = known if known.text else Marks()
    found: dict[int, str] = {}
    for record in map(_record, reversed(_whole_lines(run))):
        if record is not None and record["update"] <= before.last:
            break
        if record is not None:
            found.setdefault(record["update"], mark_of(record))  # an update's last line counts
    new = (found.get(number, _NONE) for number in range(before.last + 1, update + 1))
    return "".join([before.text, *new])[-LENGTH * MOST :]


def mark_of(record: Record) -> str:
    """What tells a line from one of another run, or of other figures."""
    told = {name: value for name, value in record.items() if not name.startswith(_LATER)}
    return checksums.of_bytes(json.dumps(told, sort_keys=True).encode())[:LENGTH]


def in_order(lines: Sequence[Record | None]) -> list[Record]:
    """The last line of each update."""
    last = {record["update"]: record for record in lines if record is not None}
    return [last[update] for update in sorted(last)]


def _record(line: bytes) -> Record | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("update"), int)
    return found if whole and all(_is_figure(value) for value in found.values()) else None


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)
