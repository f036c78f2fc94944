"""Images that people give stars: which to ask about next.

The answers are ``ratings.csv`` beside the images, as `nablaflow reward fit` reads it, with who
answered and why this image was asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from nablaflow.storage.judged import RATINGS
from nablaflow.studio.questions import AGAIN, CANDIDATES, UNSURE, Pick, Question, Questions
from nablaflow.studio.table import JudgementTable

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

    def choose(self, rater: str) -> tuple[tuple[str, ...], Pick] | None:
        rows = self.table.rows()
        own = {row.image for row in rows if row.rater == rater}
        left = [image for image in self.prompt if image not in own]
        if not left:
            return None
        share = self.draw.random()
        others = sorted({row.image for row in rows if row.rater != rater} & set(left))
        if share < AGAIN and others:
            return (self.draw.choice(others),), "again"
        if AGAIN <= share < AGAIN + UNSURE and self.doubt is not None:
            return (self._most_in_doubt(left, self.doubt),), "unsure"
        return (self.draw.choice(left),), "random"

    def row(self, question: Question, answer: str) -> StarRow:
        (image,) = question.images
        return StarRow(image, answer, question.prompt, question.rater, question.pick)

    def rater_of(self, row: StarRow) -> str:
        return row.rater

    def agreement(self) -> str:
        apart = differences(self.table.rows())
        if not apart:
            return ""
        return f"two people's stars are {fmean(apart):.1f} apart over {len(apart)} images"

    def _most_in_doubt(self, left: Sequence[str], doubt: ImageDoubt) -> str:
        some = self.draw.sample(left, min(CANDIDATES, len(left)))
        return max(zip(doubt(some), some, strict=True))[1]


def differences(rows: Sequence[StarRow]) -> list[float]:
    """How many stars two people are apart who rated one image, for each two."""
    given: dict[str, dict[str, float]] = {}
    for row in rows:
        try:
            given.setdefault(row.image, {})[row.rater] = float(row.score)
        except ValueError:  # the table may have been written by anyone
            continue
    return [abs(a - b) for stars in given.values() for a, b in combinations(stars.values(), 2)]
