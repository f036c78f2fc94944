"""Pairs of images that people judge: which to ask about next, and every answer on the disk.

The answers are ``pairs.csv`` beside the images, as `nablaflow reward fit` reads it, with two
columns more: who answered, and why this pair was asked about. A part of the pairs is drawn at
random, or the accuracy of a fit would be that of the hardest pairs alone.
"""

from __future__ import annotations

import csv
import io
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from nablaflow.errors import UserError
from nablaflow.fitting.table import PAIRS, PICK, PROMPT, RATER
from nablaflow.storage.files import append_line, sync, write_whole

Pick = Literal["random", "unsure", "again"]
Answer = Literal["left", "right", "skip"]
COLUMNS = ("preferred", "rejected", PROMPT, RATER, PICK)
UNSURE, AGAIN = 0.5, 0.15  # shares of the pairs that are not drawn at random
CANDIDATES = 200  # pairs of which the one with the most doubt is asked about
KEPT = 1000  # questions that may still be answered

Doubt = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""How unsure a fitted reward is of each of some pairs of images, by their names."""


@dataclass(frozen=True)
class Question:
    """A pair to be judged.

    Attributes:
        number: of the question; an answer names it, so that a repeated one counts once.
        left: name of an image.
        right: of another, for the same prompt where prompts are known.
        pick: why this pair: at random, the reward is unsure, or another person was asked it.
    """

    number: int
    rater: str
    left: str
    right: str
    prompt: str
    pick: Pick


@dataclass(frozen=True)
class AnswerRow:
    """An answer as the table has it."""

    preferred: str
    rejected: str
    prompt: str
    rater: str
    pick: str


class PairQuestions:
    """The pairs of one folder, for any number of raters at once."""

    def __init__(
        self, folder: Path, images: Sequence[str], prompts: Sequence[str] | None, seed: int = 0
    ) -> None:
        """Start on a folder, with the answers that are there.

        Args:
            images: names, two at least.
            prompts: one for each; None where they are not known.

        Raises:
            UserError: no two images can be compared.
        """
        texts = prompts or [""] * len(images)
        self.folder = folder
        self.doubt: Doubt | None = None
        self._prompt = dict(zip(images, texts, strict=True))
        self._groups = [group for group in _by_text(self._prompt) if len(group) > 1]
        if not self._groups:
            raise UserError(f"{folder}: no prompt has two images to compare")
        self._draw = random.Random(seed)
        self._open: dict[int, Question] = {}
        self._answered: dict[str, list[int | None]] = {}
        self._count = 0
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        return self.folder / PAIRS

    def ask(self, rater: str) -> Question:
        """The next pair for a rater."""
        with self._lock:
            left, right, pick = self._choose(rater)
            self._count += 1
            question = Question(self._count, rater, left, right, self._prompt[left], pick)
            self._open[question.number] = question
            for old in list(self._open)[:-KEPT]:
                del self._open[old]
            return question

    def answer(self, number: int, answer: Answer) -> None:
        """Note an answer; it is on the disk when this returns. A second one is no answer.

        Raises:
            OSError: it cannot be written; the question stays open.
        """
        with self._lock:
            question = self._open.get(number)
            if question is None:
                return
            if answer != "skip":
                _append(self.path, _row(question, answer))
            del self._open[number]
            self._answered.setdefault(question.rater, []).append(
                None if answer == "skip" else number
            )

    def undo(self, rater: str) -> bool:
        """Take a rater's last answer of this sitting back; False where there is none."""
        with self._lock:
            given = self._answered.get(rater, [])
            if not given:
                return False
            if given[-1] is not None:
                rows = read_rows(self.path)
                own = [place for place, row in enumerate(rows) if row.rater == rater]
                if own:
                    _write(self.path, [*rows[: own[-1]], *rows[own[-1] + 1 :]])
            given.pop()
            return True

    def rows(self) -> list[AnswerRow]:
        return read_rows(self.path)

    def _choose(self, rater: str) -> tuple[str, str, Pick]:
        """A pair, its sides in a random order, and why it is this one."""
        share = self._draw.random()
        pair, pick = None, "random"
        if share < AGAIN:
            pair, pick = self._asked_of_another(rater), "again"
        elif share < AGAIN + UNSURE and self.doubt is not None:
            pair, pick = self._most_in_doubt(self.doubt), "unsure"
        if pair is None:
            pair, pick = self._at_random(), "random"
        first, second = pair if self._draw.random() < 0.5 else pair[::-1]
        return first, second, pick

    def _at_random(self) -> tuple[str, str]:
        weights = [len(group) for group in self._groups]
        (group,) = self._draw.choices(self._groups, weights)
        first, second = self._draw.sample(group, 2)
        return first, second

    def _most_in_doubt(self, doubt: Doubt) -> tuple[str, str] | None:
        pairs = [self._at_random() for _ in range(CANDIDATES)]
        found = doubt(pairs)
        return max(zip(found, pairs, strict=True))[1] if found else None

    def _asked_of_another(self, rater: str) -> tuple[str, str] | None:
        """A pair that somebody else has judged and this rater has not."""
        rows = read_rows(self.path)
        own = {_sides(row) for row in rows if row.rater == rater}
        others = sorted({_sides(row) for row in rows if row.rater != rater} - own)
        known = [pair for pair in others if set(pair) <= self._prompt.keys()]
        return self._draw.choice(known) if known else None


def agreement(rows: Sequence[AnswerRow]) -> tuple[int, int]:
    """How often two people who judged one pair say the same, and how often there are two."""
    verdicts: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        verdicts.setdefault(_sides(row), {})[row.rater] = row.preferred
    same = [a == b for said in verdicts.values() for a, b in combinations(said.values(), 2)]
    return sum(same), len(same)


def read_rows(path: Path) -> list[AnswerRow]:
    """The answers so far; a line that a crash cut short is none.

    Raises:
        UserError: the file is no table of pairs.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    whole = text[: text.rfind("\n") + 1]
    lines = [line for line in csv.reader(io.StringIO(whole), skipinitialspace=True) if line]
    if not lines:
        return []
    if not {"preferred", "rejected"} <= set(lines[0]):
        raise UserError(f"{path}: the first line must name preferred,rejected")
    cells = [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]
    return [AnswerRow(*(row.get(column, "") for column in COLUMNS)) for row in cells]


def _by_text(prompt: dict[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for image, text in prompt.items():
        groups.setdefault(text, []).append(image)
    return list(groups.values())


def _sides(row: AnswerRow) -> tuple[str, str]:
    first, second = sorted((row.preferred, row.rejected))
    return first, second


def _row(question: Question, answer: Answer) -> AnswerRow:
    sides = (question.left, question.right)
    preferred, rejected = sides if answer == "left" else sides[::-1]
    return AnswerRow(preferred, rejected, question.prompt, question.rater, question.pick)


def _append(path: Path, row: AnswerRow) -> None:
    """One line more; a table with other columns, or whose last line is cut, is written anew."""
    header = _line(COLUMNS)
    content = path.read_bytes() if path.exists() else b""
    if content.startswith(header.encode()) and content.endswith(b"\n"):
        append_line(path, _line(_cells(row)).rstrip("\n"))
        sync(path)
    else:
        _write(path, [*read_rows(path), row])


def _write(path: Path, rows: Sequence[AnswerRow]) -> None:
    write_whole(path, "".join([_line(COLUMNS), *(_line(_cells(row)) for row in rows)]))


def _cells(row: AnswerRow) -> tuple[str, ...]:
    return row.preferred, row.rejected, row.prompt, row.rater, row.pick


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([_one_line(cell) for cell in cells])
    return buffer.getvalue()


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
