"""Images that people give stars: which to ask about next.

The answers are ``ratings.csv`` beside the images, as `nablaflow reward fit` reads it, with who
answered and why this image was asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from nablaflow.storage.judged import RATINGS
from nablaflow.studio.questions import AGAIN, CANDIDATES, UNSURE, Pick, Question, Questions
from nablaflow.studio.table import JudgementTable
from nablaflow.studio.verdicts import Verdicts

ImageDoubt = Callable[[Sequence[str]], Sequence[float]]
"""How unsure a fitted reward is of each of some images, by their names."""


class StarRow(NamedTuple):
    """An answer as the table has it; the score is 1 to 5."""

    image: str
    score: str
    prompt: str
    rater: str
    pick: str


class StarQuestions(Questions[StarRow]):
    """How good an image is; each is asked of a rater once.

    Attributes:
        doubt: the fitted reward's; None while there is none.
    """

    answers = ("1", "2", "3", "4", "5")

    def __init__(
        self, folder: Path, images: Sequence[str], prompts: Sequence[str], seed: int = 0
    ) -> None:
        table: JudgementTable[StarRow] = JudgementTable(folder / RATINGS, StarRow)
        super().__init__(folder, images, prompts, table, seed)
        self.doubt: ImageDoubt | None = None
        self._verdicts = Verdicts(_verdict, _apart)

    def choose(self, rater: str) -> tuple[tuple[str, ...], Pick] | None:
        self._verdicts.follow(self.table.rows())
        left = [image for image in self.prompt if not self._verdicts.is_by(image, rater)]
        if not left:
            return None
        share = self.draw.random()
        if share < AGAIN and (image := self._asked_of_another(rater)):
            return (image,), "again"
        if AGAIN <= share < AGAIN + UNSURE and self.doubt is not None:
            return (self._most_in_doubt(left, self.doubt),), "unsure"
        return (self.draw.choice(left),), "random"

    def row(self, question: Question, answer: str) -> StarRow:
        (image,) = question.images
        return StarRow(image, answer, question.prompt, question.rater, question.pick)

    def rater_of(self, row: StarRow) -> str:
        return row.rater

    def agreement(self) -> str:
        self._verdicts.follow(self.table.rows())
        apart, of = self._verdicts.apart()
        return f"two people's stars are {apart / of:.1f} apart over {of} images" if of else ""

    def _most_in_doubt(self, left: Sequence[str], doubt: ImageDoubt) -> str:
        some = self.draw.sample(left, min(CANDIDATES, len(left)))
        return max(zip(doubt(some), some, strict=True))[1]

    def _asked_of_another(self, rater: str) -> str | None:
        """An image that somebody else has rated and this rater has not; not found where rare."""
        judged = self._verdicts.items
        for image in self.draw.sample(judged, min(CANDIDATES, len(judged))):
            if image in self.prompt and not self._verdicts.is_by(image, rater):
                return image
        return None


def _verdict(row: StarRow) -> tuple[str, str, float] | None:
    try:
        score = float(row.score)
    except ValueError:  # the table may have been written by anyone
        return None
    return (row.image, row.rater, score) if isfinite(score) else None


def _apart(one: float, other: float) -> float:
    return abs(one - other)
