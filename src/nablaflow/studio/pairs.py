"""Pairs of images that people judge: which to ask about next.

The answers are ``pairs.csv`` beside the images, as `nablaflow reward fit` reads it, with two
columns more: who answered, and why this pair was asked about. A part of the pairs is drawn at
random, or the accuracy of a fit would be that of the hardest pairs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from nablaflow.errors import UserError
from nablaflow.storage.judged import PAIRS
from nablaflow.studio.questions import AGAIN, CANDIDATES, UNSURE, Pick, Question, Questions
from nablaflow.studio.table import JudgementTable
from nablaflow.studio.verdicts import Verdicts

Doubt = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""How unsure a fitted reward is of each of some pairs of images, by their names."""


class PairRow(NamedTuple):
    """An answer as the table has it."""

    preferred: str
    rejected: str
    prompt: str
    rater: str
    pick: str


class PairQuestions(Questions[PairRow]):
    """Which of two images of one prompt is better.

    Attributes:
        doubt: the fitted reward's; None while there is none.
    """

    answers = ("left", "right")

    def __init__(
        self, folder: Path, images: Sequence[str], prompts: Sequence[str], seed: int = 0
    ) -> None:
        """Start on a folder, with the answers that are there.

        Raises:
            UserError: no two images can be compared.
        """
        table: JudgementTable[PairRow] = JudgementTable(folder / PAIRS, PairRow)
        super().__init__(folder, images, prompts, table, seed)
        self.doubt: Doubt | None = None
        self._verdicts = Verdicts(_verdict, _differ)
        self._groups = [group for group in _by_text(self.prompt) if len(group) > 1]
        if not self._groups:
            raise UserError(f"{folder}: no prompt has two images to compare")

    def choose(self, rater: str) -> tuple[tuple[str, ...], Pick]:
        """A pair, its sides in a random order, and why it is this one."""
        share = self.draw.random()
        pair, pick = None, "random"
        if share < AGAIN:
            pair, pick = self._asked_of_another(rater), "again"
        elif share < AGAIN + UNSURE and self.doubt is not None:
            pair, pick = self._most_in_doubt(self.doubt), "unsure"
        if pair is None:
            pair, pick = self._at_random(), "random"
        return pair if self.draw.random() < 0.5 else pair[::-1], pick

    def row(self, question: Question, answer: str) -> PairRow:
        preferred, rejected = question.images if answer == "left" else question.images[::-1]
        return PairRow(preferred, rejected, question.prompt, question.rater, question.pick)

    def rater_of(self, row: PairRow) -> str:
        return row.rater

    def agreement(self) -> str:
        self._verdicts.follow(self.table.rows())
        unlike, of = self._verdicts.apart()
        return f"{of - int(unlike)} of {of} pairs judged alike by two people" if of else ""

    def _at_random(self) -> tuple[str, str]:
        weights = [len(group) for group in self._groups]
        (group,) = self.draw.choices(self._groups, weights)
        first, second = self.draw.sample(group, 2)
        return first, second

    def _most_in_doubt(self, doubt: Doubt) -> tuple[str, str] | None:
        pairs = [self._at_random() for _ in range(CANDIDATES)]
        found = doubt(pairs)
        return max(zip(found, pairs, strict=True))[1] if found else None

    def _asked_of_another(self, rater: str) -> tuple[str, str] | None:
        """A pair that somebody else has judged and this rater has not; not found where rare."""
        self._verdicts.follow(self.table.rows())
        judged = self._verdicts.items
        for pair in self.draw.sample(judged, min(CANDIDATES, len(judged))):
            if not self._verdicts.is_by(pair, rater) and set(pair) <= self.prompt.keys():
                return pair
        return None


def _verdict(row: PairRow) -> tuple[tuple[str, str], str, str]:
    """The pair, its sides in the order of their names; who judged it; the better one."""
    first, second = sorted((row.preferred, row.rejected))
    return (first, second), row.rater, row.preferred


def _differ(one: str, other: str) -> float:
    return float(one != other)


def _by_text(prompt: dict[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for image, text in prompt.items():
        groups.setdefault(text, []).append(image)
    return list(groups.values())
