"""The table of judgements beside the images: read, one line more, one line less."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from nablaflow.errors import UserError, printable
from nablaflow.storage.files import append_line, sync, write_whole

Row = TypeVar("Row", bound=tuple[str, ...])


class JudgementTable(Generic[Row]):
    """Rows of a CSV file as `nablaflow reward fit` reads it, in memory while nobody else writes.

    Args:
        kind: a named tuple; its fields are the columns.
        needed: columns that a file must have to be such a table.
    """

    def __init__(self, path: Path, kind: Any, needed: int = 2) -> None:
        self.path = path
        self._kind = kind
        self._columns: tuple[str, ...] = kind._fields
        self._needed = set(self._columns[:needed])
        self._seen: tuple[int, int] | None = None
        self._rows: list[Row] = []
        self._lock = threading.RLock()

    def rows(self) -> Sequence[Row]:
        """The rows so far, the same list while rows only come; a line that a crash cut is none.

        Raises:
            UserError: the file is no such table.
        """
        with self._lock:
            now = self._stamp()
            if now is None or now != self._seen:
                self._rows, self._seen = self._read(), now
            return self._rows

    def append(self, row: Row) -> None:
        """One line more, on the disk when this returns.

        A table with other columns, or whose last line is cut, is written anew.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            self.rows()
            if self._is_whole():
                append_line(self.path, _line(row).rstrip("\n"))
                sync(self.path)
            else:
                self._write([*self._rows, row])
            self._rows.append(self._kind(*map(printable, row)))
            self._seen = self._stamp()

    def remove(self, place: int) -> None:
        """One row less, by its place among `rows`; on the disk when this returns."""
        with self._lock:
            rows = list(self.rows())
            del rows[place]
            self._write(rows)
            self._rows, self._seen = rows, self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def _is_whole(self) -> bool:
        """Whether a line can be added: it has these columns, and its last line has an end."""
        header = _line(self._columns).encode()
        try:
            with self.path.open("rb") as file:
                if file.read(len(header)) != header:
                    return False
                file.seek(-1, io.SEEK_END)
                return file.read() == b"\n"
        except FileNotFoundError:
            return False

    def _read(self) -> list[Row]:
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: cannot be read ({error})") from error
        whole = text[: text.rfind("\n") + 1]
        lines = [line for line in csv.reader(io.StringIO(whole), skipinitialspace=True) if line]
        if not lines:
            return []
        if not self._needed <= set(lines[0]):
            names = ",".join(self._columns[: len(self._needed)])
            raise UserError(f"{self.path}: the first line must name {names}")
        cells = [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]
        return [self._kind(*(row.get(column, "") for column in self._columns)) for row in cells]

    def _write(self, rows: Sequence[Row]) -> None:
        write_whole(self.path, "".join([_line(self._columns), *map(_line, rows)]))


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([printable(cell) for cell in cells])
    return buffer.getvalue()
