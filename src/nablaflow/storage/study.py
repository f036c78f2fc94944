"""A study: cells that are each stored when finished, so that the same command goes on with it."""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from nablaflow.errors import UserError
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole
from nablaflow.storage.run_folder import place_fault

ALL = "all"
"""Names every one of a list."""

FILES = "files"
"""Among a cell's settings: what tells the user's own files, which may change, by their names."""

Cell = TypeVar("Cell")
"""What is run at once: a method on something, with a seed."""


class Study(abc.ABC, Generic[Cell]):
    """Cells and the settings that decide their figures.

    Attributes:
        holds: what a finished cell's file has besides its settings.
        out: folder of the cells.
    """

    holds: ClassVar[str]
    out: Path

    @property
    @abc.abstractmethod
    def cells(self) -> list[Cell]:
        """All of them, in the order in which they are run."""

    @abc.abstractmethod
    def path(self, cell: Cell) -> Path:
        """Of a finished cell's file; where it is, the cell is whole."""

    @abc.abstractmethod
    def settings(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's figures, as plain data."""

    def missing(self, *, overwrite: bool = False) -> list[Cell]:
        """The cells that have to be run; writes nothing.

        Args:
            overwrite: run those again that were made with other settings, or cannot be read.

        Raises:
            UserError: there are such cells, and they are not to be overwritten.
        """
        return [cell for cell in self.cells if not self.is_done(cell, overwrite=overwrite)]

    def done(self) -> int:
        """How many cells are there, made with these settings."""
        return len(self.cells) - len(self.missing(overwrite=True))

    def is_done(self, cell: Cell, *, overwrite: bool = False) -> bool:
        """Whether the cell is there, made with these settings.

        Args:
            overwrite: as in `missing`.

        Raises:
            UserError: as in `missing`.
        """
        path = self.path(cell)
        if not path.is_file():
            return False
        try:
            found = self.read(cell)["settings"]
        except UserError:
            if overwrite:
                return False
            raise
        change = self._change(found, cell)
        if change and not overwrite:
            raise UserError(
                f"--out: {path.parent} holds figures of other settings ({change}); "
                "use --overwrite or another --out"
            )
        return not change

    def finished(self, cell: Cell) -> dict[str, Any]:
        """A finished cell, as `read`, that was made with these settings.

        Raises:
            UserError: as `read`; or another process has put one of other settings in its place.
        """
        found = self.read(cell)
        if change := self._change(found["settings"], cell):
            raise UserError(
                f"--out: {self.path(cell)} was replaced meanwhile by figures of other settings "
                f"({change}); run one command at a time in a folder, or give each its own --out"
            )
        return found

    def _change(self, found: dict[str, Any], cell: Cell) -> str | None:
        """The first setting that differs; own files count where the cell has recorded them."""
        settings = self.settings(cell)
        if FILES not in found:
            settings = {name: value for name, value in settings.items() if name != FILES}
        return difference(self._completed(found), settings)

    def _completed(self, found: dict[str, Any]) -> dict[str, Any]:
        """A cell's settings, with the defaults of those that there were none of at its time."""
        return found

    def store(self, cell: Cell, found: dict[str, Any]) -> None:
        """Write a finished cell with its settings; ``found`` has what the study ``holds``."""
        path, whole = self.path(cell), found | {"settings": self.settings(cell)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, checksums.sealed(whole))

    def read(self, cell: Cell) -> dict[str, Any]:
        """A finished cell.

        Raises:
            UserError: its file is not one.
        """
        path = self.path(cell)
        try:
            found = checksums.checked(path.read_text(encoding="utf-8"))
            whole = isinstance(found["settings"], dict) and isinstance(
                found[self.holds], dict | list
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            whole, found = False, {}
        if not whole:
            raise UserError(f"--out: {path} is not a finished cell; remove it, or use --overwrite")
        return found


def difference(old: Any, new: Any, name: str = "") -> str | None:
    """The first setting that differs, with both values; None: all are the same."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else f"{name}: {old} there, {new} here"
    for key in {**old, **new}:
        inner = f"{name}.{key}" if name else key
        if change := difference(old.get(key), new.get(key), inner):
            return change
    return None


def chosen(names: Sequence[str], known: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    """Names as the command line has them: each once, ``all`` for the list, none for the default."""
    every = known if ALL in names else ()
    found = dict.fromkeys([*every, *(name for name in names if name != ALL)])
    return tuple(found) or tuple(default)


def at_least(name: str, value: int, least: int, most: int = 10**6) -> None:
    """Raise `UserError` where an option's number is too small, or no machine could do as many."""
    if value < least:
        raise UserError(f"--{name}: {value} is too few; use {least} or more")
    if value > most:
        raise UserError(f"--{name}: {value} is too many; use {most} or fewer")


def check_writable(out: Path) -> None:
    """Find out before the work whether a study's folder can be written.

    Raises:
        UserError: it cannot.
    """
    fault = place_fault(out)
    if fault is not None:
        raise UserError(f"--out: {fault}; give another folder")


@contextmanager
def unwritable_is_the_users(out: Path) -> Iterator[None]:
    """Turn a folder that cannot be written, or a full disk, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--out: cannot write {error.filename or out} ({error.strerror or error}); "
            "use another folder, or make room"
        ) from error


def slug(name: str) -> str:
    """A name, or a place of code, as a folder's.

    >>> slug("symmetry + 0.5*colorfulness")
    'symmetry-0.5-colorfulness'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.")
