"""Prompts in files: one a line, or a column of JSON lines or of a table with commas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError, nearest
from nablaflow.storage import files

COLUMN = "prompt"
"""Where no column is named."""
LARGEST = 1 << 28  # bytes of a file
OTHERS = (".json", ".ndjson", ".tsv", ".yaml", ".yml", ".toml", ".xml", ".html", ".ipynb")
"""Ends of names of files whose lines are no prompts, though they are text."""
Row = tuple[int, str, Any]
"""A line's number, its prompt, and what stands beside it: a reward's metadata."""


@dataclass(frozen=True)
class FoundPrompts:
    """Prompts as they were found.

    Attributes:
        source: what a message calls it.
        texts: without the empty ones.
        lines: of each, from 1.
        empty: lines without a prompt.
        beside: the metadata of each text; empty where there is none.
        drawn: how many were drawn from a function, by which seed; None: they were read.
    """

    source: str
    texts: Sequence[str]
    lines: Sequence[int]
    empty: Sequence[int] = ()
    beside: Sequence[Any] = ()
    drawn: tuple[int, int] | None = None

    @classmethod
    def of(cls, source: str, rows: Iterable[Row]) -> FoundPrompts:
        """From lines and their texts; what is blank counts as empty.

        Raises:
            UserError: there is no prompt.
        """
        stripped = [(line, text.strip(), beside) for line, text, beside in rows]
        kept = [row for row in stripped if row[1]]
        if not kept:
            raise UserError(f"prompts: {source} holds no prompt; write one per line")
        lines, texts, beside = zip(*kept, strict=True)
        return cls(source, texts, lines, [line for line, text, _ in stripped if not text], beside)

    def note(self) -> str | None:
        """One line on draws, on prompts that come again and on empty lines; None without any."""
        if self.drawn is not None:
            count, seed = self.drawn
            different = len(set(self.texts))
            return f"prompts: {self.source} drew {count} by seed {seed}, {different} different ones"
        first: dict[str, int] = {}
        again = []
        for line, text in zip(self.lines, self.texts, strict=True):
            if text in first:
                again.append((line, first[text]))
            first.setdefault(text, line)
        parts = []
        if again:
            parts.append(
                f"{len(again)} duplicates, which count again (line {again[0][0]} repeats line "
                f"{again[0][1]})"
            )
        if self.empty:
            parts.append(f"{len(self.empty)} empty lines, left out (line {self.empty[0]})")
        return f"prompts: {self.source} has {' and '.join(parts)}" if parts else None


def metadata_of(sources: Iterable[FoundPrompts]) -> dict[str, Any]:
    """What stands beside each prompt of some sources, by its text.

    Raises:
        UserError: one text has two different metadata, and a reward could not tell which.
    """
    table: dict[str, Any] = {}
    for found in sources:
        for text, beside in zip(found.texts, found.beside, strict=False):
            if repr(table.setdefault(text, beside)) != repr(beside):
                raise UserError(
                    f"prompts: {found.source} has {text[:40]!r} with two different metadata, and "
                    "the reward reads metadata by the prompt's text; make the texts different"
                )
    return table


def read_file(path: Path, column: str | None) -> FoundPrompts:
    """The prompts of a text file, of ``.jsonl`` or of ``.csv``.

    Args:
        column: of the latter two; None is `COLUMN`.

    Raises:
        UserError: it cannot be read as that, or holds no prompt.
    """
    text, kind = read_text(path), path.suffix.lower()
    if kind == ".jsonl":
        return FoundPrompts.of(str(path), _json_lines(path, text, column or COLUMN))
    if kind == ".csv":
        return FoundPrompts.of(str(path), _table(path, text, column or COLUMN))
    if kind == ".py":
        raise UserError(
            f"prompts: {path} is code, and its lines are no prompts; a function in it that makes "
            f"prompts is trl:{path}:function"
        )
    if kind in OTHERS:
        raise UserError(
            f"prompts: {path} would be read as one prompt per line; save it as .jsonl, an object "
            "with a prompt on each line, as .csv, or as .txt if each line is a prompt"
        )
    if column is not None:
        raise UserError(f"prompts.column: {path} is plain text, one prompt per line; leave it out")
    return FoundPrompts.of(str(path), _plain(text))


def _plain(text: str) -> Iterator[Row]:
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, start=1):
        if not line.strip().startswith("#"):
            yield number, line, {}


def _json_lines(path: Path, text: str, column: str) -> Iterator[Row]:
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        if not line.strip():
            yield number, "", {}
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"prompts: {path}, line {number} is not JSON") from None
        if not isinstance(row, dict):
            raise UserError(f"prompts: {path}, line {number} is no object with a {column!r}")
        prompt = _cell(row, column, f"{path}, line {number}")
        yield number, prompt, _without(row, column)


def _table(path: Path, text: str, column: str) -> Iterator[Row]:
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, strict=True, skipinitialspace=True)
    try:
        _check_header(path, reader.fieldnames)
        for row in reader:
            if None in row:  # under it are the cells beyond the last column
                raise UserError(
                    f"prompts: {path}, line {reader.line_num} has more cells than the first line "
                    "has columns; put quotes around a text with a comma"
                )
            yield reader.line_num, _cell(row, column, str(path)), _without(row, column)
    except csv.Error as error:
        raise UserError(f"prompts: {path}, line {reader.line_num}: {error}") from None


def _check_header(path: Path, names: Sequence[str] | None) -> None:
    if names is None:  # the file is empty
        return
    if not names:
        raise UserError(f"prompts: {path}: its first line is blank; let it name the columns")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"prompts: {path}: the column {twice[0]!r} comes twice; keep one")


def _without(row: Mapping[str, object], column: str) -> dict[str, object]:
    return {key: value for key, value in row.items() if key != column}


def _cell(row: Mapping[str, object], column: str, place: str) -> str:
    if column not in row:
        names = [str(name) for name in row if name is not None]
        hint = nearest(column, names) if names else "it has none"
        raise UserError(f"prompts.column: {place} has no column {column!r}; {hint}")
    return text_of(row[column], column, place)


def text_of(value: object, column: str, place: str) -> str:
    """What a column holds of one prompt; nothing counts as empty.

    Raises:
        UserError: it is no text.
    """
    if value is not None and not isinstance(value, str):
        raise UserError(f"prompts.column: {place} has no text in column {column!r}")
    if value is not None and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"prompts: {place} holds half a character; write it in UTF-8")
    return value or ""


def read_text(path: Path) -> str:
    """A UTF-8 text file.

    Raises:
        UserError: it is none.
    """
    try:
        text = files.read_text(path, LARGEST)
    except UnicodeDecodeError:
        raise UserError(f"prompts: {path} is not UTF-8 text; save it with one per line") from None
    except FileNotFoundError:
        remedy = "give the path of a text file, or the prompts themselves as [a cat, a dog]"
        raise UserError(f"prompts: no file {path}; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"prompts: cannot read {path} ({reason}); give a text file") from None
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        raise UserError(f"prompts: {path} is a binary file; give a text file, one prompt per line")
    return text
