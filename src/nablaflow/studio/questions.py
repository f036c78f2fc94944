"""Asking several people about images, and keeping what they say: what pairs and stars share."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Literal

from nablaflow.studio.table import JudgementTable, Row

Pick = Literal["random", "unsure", "again"]
UNSURE, AGAIN = 0.5, 0.15  # shares of the questions that are not drawn at random
CANDIDATES = 200  # drawn, of which the one with the most doubt is asked about
KEPT = 1000  # questions that may still be answered
SKIP = "skip"


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        number: of the question; an answer names it, so that a repeated one counts once.
        images: names: of a pair, left and right; or of one image.
        pick: why these: at random, the reward is unsure, or another person was asked it.
    """

    number: int
    rater: str
    images: tuple[str, ...]
    prompt: str
    pick: Pick


class Questions(ABC, Generic[Row]):
    """The questions about one folder, for any number of raters at once.

    Args:
        images: names.
        prompts: one for each.
    """

    answers: ClassVar[tuple[str, ...]]
    """What may be answered, besides `SKIP`."""

    def __init__(
        self,
        folder: Path,
        images: Sequence[str],
        prompts: Sequence[str],
        table: JudgementTable[Row],
        seed: int = 0,
    ) -> None:
        self.folder, self.table = folder, table
        self.prompt = dict(zip(images, prompts, strict=True))
        self.draw = random.Random(seed)
        self._open: dict[int, Question] = {}
        self._answered: dict[str, list[int | None]] = {}
        self._count = 0
        self._lock = threading.Lock()

    @abstractmethod
    def choose(self, rater: str) -> tuple[tuple[str, ...], Pick] | None:
        """What to ask a rater next, and why; None where there is nothing left."""

    @abstractmethod
    def row(self, question: Question, answer: str) -> Row:
        """An answer as the table has it."""

    @abstractmethod
    def rater_of(self, row: Row) -> str: ...

    @abstractmethod
    def agreement(self) -> str:
        """How far people agree, in words; nothing where no two were asked the same."""

    def ask(self, rater: str) -> Question | None:
        """The next question to a rater; None where there is nothing left to ask."""
        with self._lock:
            chosen = self.choose(rater)
            if chosen is None:
                return None
            images, pick = chosen
            self._count += 1
            question = Question(self._count, rater, images, self.prompt[images[0]], pick)
            self._open[question.number] = question
            if len(self._open) > KEPT:
                del self._open[next(iter(self._open))]
            return question

    def answer(self, number: int, answer: str) -> None:
        """Note an answer; it is on the disk when this returns. A second one is no answer.

        Raises:
            OSError: it cannot be written; the question stays open.
        """
        with self._lock:
            question = self._open.get(number)
            if question is None:
                return
            if answer != SKIP:
                self.table.append(self.row(question, answer))
            del self._open[number]
            given = None if answer == SKIP else number
            self._answered.setdefault(question.rater, []).append(given)

    def undo(self, rater: str) -> bool:
        """Take a rater's last answer of this sitting back; False where there is none."""
        with self._lock:
            given = self._answered.get(rater, [])
            if not given:
                return False
            if given[-1] is not None:
                rows = self.table.rows()
                own = [place for place, row in enumerate(rows) if self.rater_of(row) == rater]
                if own:
                    self.table.remove(own[-1])
            given.pop()
            return True

    def go_on_from(self, before: Questions[Row]) -> None:
        """Take over what was asked and answered, so that no number means two questions."""
        with before._lock:
            self._open, self._answered = before._open, before._answered
            self._count = before._count

    def counts(self, rater: str) -> tuple[int, int]:
        """How many answers of a rater there are, and of all."""
        rows = self.table.rows()
        return sum(self.rater_of(row) == rater for row in rows), len(rows)
