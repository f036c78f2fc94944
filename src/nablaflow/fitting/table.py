"""Reads what people judged: ``ratings.csv`` or ``pairs.csv`` in a folder of images."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from nablaflow.errors import UserError, nearest
from nablaflow.fitting.training import Rows
from nablaflow.storage.judged import COLUMNS, PAIRS, PICK, PROMPT, RANDOM, RATER, RATINGS

SMALLEST, LARGEST = 1e-30, 1e30  # standard deviation: heads are float32
LEAST = 20  # rows: with fewer, no fold has enough to say how good the fit is


@dataclass(frozen=True)
class Judgements:
    """A table of judgements, checked.

    Attributes:
        kind: "ratings" or "pairs".
        images: every image once.
        rows: what was judged, by index into ``images``; ratings standardised.
        prompts: one a row; None where the table has no such column.
        shift: mean of the ratings; 0 for pairs.
        scale: their standard deviation; 1 for pairs.
        at_random: (row,) which rows were drawn at random; None where the table does not tell.
    """

    kind: str
    images: list[Path]
    rows: Rows
    prompts: list[str] | None
    shift: float = 0.0
    scale: float = 1.0
    at_random: Bool[Tensor, "row"] | None = None


def read_judgements(folder: Path, kind: str | None = None) -> Judgements:
    """The judgements of a folder; images are looked for beside the table, and not opened yet.

    Args:
        kind: "ratings" or "pairs"; None: of the table that is there.

    Raises:
        UserError: one line that names the file, the line in it and the remedy.
    """
    path = _table(folder, kind)
    lines = _read(path)
    if len(lines) < LEAST:
        raise UserError(
            f"{path}: {len(lines)} rows are too few to learn from; give {LEAST} or more"
        )
    prompts = [line[PROMPT] for _, line in lines] if PROMPT in lines[0][1] else None
    read = _pairs if path.name == PAIRS else _ratings
    return replace(read(path, lines, prompts), at_random=_at_random(lines))


def _at_random(lines: _Lines) -> Bool[Tensor, "row"] | None:
    if PICK not in lines[0][1]:
        return None
    return torch.tensor([line[PICK] == RANDOM for _, line in lines])


_Lines = list[tuple[int, dict[str, str]]]
"""Number of a line in the file, and its cells by column."""


def _table(folder: Path, kind: str | None) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with {RATINGS} or {PAIRS} in it")
    if kind is not None and not (folder / f"{kind}.csv").is_file():
        raise UserError(f"{folder}: holds no {kind}.csv; write it, or leave --judgements out")
    names = COLUMNS if kind is None else [f"{kind}.csv"]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: holds neither {RATINGS} nor {PAIRS}; write one of them")
    if len(found) > 1:
        raise UserError(f"{folder}: holds {RATINGS} and {PAIRS}; choose with --judgements")
    return found[0]


def _read(path: Path) -> _Lines:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            table = [(reader.line_num, [c.strip() for c in row]) for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); it must be CSV in UTF-8") from error
    if not table:
        raise UserError(f"{path}: empty; its first line is {','.join(COLUMNS[path.name])}")
    header = table[0][1]
    _check_columns(path, header)
    for number, cells in table[1:]:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(cells)} cells under {len(header)} columns; "
                "put quotes around a text with a comma"
            )
    return [(number, dict(zip(header, cells, strict=True))) for number, cells in table[1:]]


def _check_columns(path: Path, header: list[str]) -> None:
    wanted = COLUMNS[path.name]
    known = (*wanted, PROMPT, RATER, PICK)
    for column in header:
        if header.count(column) > 1:
            raise UserError(f"{path}: the column {column!r} comes twice; keep one")
        if column not in known:
            raise UserError(f"{path}: unknown column {column!r}; {nearest(column, known)}")
    missing = [column for column in wanted if column not in header]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r}; the first line must be {','.join(wanted)}, "
            f"with ,{PROMPT} if prompts are known"
        )


def _index(path: Path, lines: _Lines, columns: Iterable[str]) -> tuple[list[Path], list[list[int]]]:
    """Every image once, and for each column the index of its image in every row."""
    places: dict[Path, int] = {}
    found: list[list[int]] = []
    for column in columns:
        found.append([])
        for number, line in lines:
            image = path.parent / line[column]
            if not image.is_file():
                raise UserError(
                    f"{path}, line {number}: there is no image {line[column]!r} in {path.parent}; "
                    "paths start at the table's folder"
                )
            found[-1].append(places.setdefault(image.resolve(), len(places)))
    return list(places), found


def _pairs(path: Path, lines: _Lines, prompts: list[str] | None) -> Judgements:
    images, (preferred, rejected) = _index(path, lines, COLUMNS[PAIRS])
    for (number, line), first, second in zip(lines, preferred, rejected, strict=True):
        if first == second:
            raise UserError(
                f"{path}, line {number}: {line['preferred']!r} is compared with itself; "
                "leave the row out"
            )
    rows = Rows(torch.tensor(preferred), torch.tensor(rejected))
    return Judgements("pairs", images, rows, prompts)


def _ratings(path: Path, lines: _Lines, prompts: list[str] | None) -> Judgements:
    images, (rated,) = _index(path, lines, COLUMNS[RATINGS][:1])
    scores = [_number(path, number, line["score"]) for number, line in lines]
    ratings = torch.tensor(scores, dtype=torch.float64)
    if ratings.min() == ratings.max():
        raise UserError(f"{path}: every score is {scores[0]:g}; nothing can be learned from that")
    if len(images) < 2:
        raise UserError(f"{path}: all ratings are of one image; rate more images")
    shift, scale = float(ratings.mean()), float(ratings.std())
    if not SMALLEST < scale < LARGEST:
        raise UserError(
            f"{path}: the scores have a standard deviation of {scale:g}; give them in a unit in "
            f"which it is between {SMALLEST:g} and {LARGEST:g}"
        )
    target = ((ratings - shift) / scale).float()
    rows = Rows(torch.tensor(rated), target=target)
    return Judgements("ratings", images, rows, prompts, shift, scale)


def _number(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}, line {number}: the score {text!r} is not a finite number")
    return value
