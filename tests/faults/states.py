"""Every state that work leaves a folder in: what is there if it is killed at that moment.

Python tells of each change to a disk before it is made (PEP 578), whoever makes it. A copy of the
folder is then what a process that dies there leaves, since what it has not written yet is lost
with it; so one run of the work shows all the places where it may die.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.processes import in_a_process

CHANGES = {f"os.{name}" for name in ("link", "mkdir", "remove", "rename", "rmdir", "truncate")}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def states_of(work: Callable[[], object], folder: Path, place: Path) -> list[Path]:
    """Copies of ``folder`` in ``place``, no two neighbours the same, in the order of the work."""
    place.mkdir()

    def watched() -> None:
        sys.addaudithook(_Copier(folder, place))  # for good, which in its own process is no matter
        work()

    assert in_a_process(watched) == 0
    return sorted(place.iterdir())


class _Copier:
    """Copies a folder before each change, if anything is another than at the one before."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place = folder, place
        self.last, self.number, self.busy = "", 0, False

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        changes = event in CHANGES or (event == "open" and bool(given[2] & WRITES))
        if not changes or self.busy:
            return
        self.busy = True
        try:
            self._copy()
        finally:
            self.busy = False

    def _copy(self) -> None:
        found = "".join(f"{name} {mark}\n" for name, mark in sorted(marks(self.folder).items()))
        if found != self.last:
            self.last = found
            shutil.copytree(self.folder, self.place / f"{self.number:04}")
            self.number += 1


def marks(folder: Path) -> dict[str, str]:
    """A checksum of each file by its path; of a folder its name alone."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


def torn(before: Path, after: Path) -> Path | None:
    """What a process leaves that is killed while it writes, between two neighbouring states.

    The file that was written last is cut to half of what came to it. None: none was written.
    """
    old, new = marks(before), marks(after)
    written = [n for n, mark in new.items() if mark and mark not in (*old.values(), EMPTY)]
    if not written:
        return None
    last = max(written, key=lambda name: (after / name).stat().st_mtime_ns)
    there = (before / last).stat().st_size if last in old else 0
    copy = after.with_name(f"{after.name}-torn")
    shutil.copytree(after, copy)
    os.truncate(copy / last, (there + (after / last).stat().st_size) // 2)
    return copy


EMPTY = hashlib.sha256(b"").hexdigest()
