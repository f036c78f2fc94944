"""What the page holds while it is served: where it looks, what it may do, who is judging."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nablaflow.errors import UserError
from nablaflow.studio import commands, exports
from nablaflow.studio.commands import Base
from nablaflow.studio.folders import COMPARISONS, Folders, find, images_of, prompt_of
from nablaflow.studio.galleries import place_of
from nablaflow.studio.jobs import Job, Jobs
from nablaflow.studio.pairs import PairQuestions
from nablaflow.studio.scoring import Scoring
from nablaflow.studio.stars import StarQuestions

Kind = Literal["pairs", "stars"]
IMAGES = "images"  # below the root, what the page samples
FRESH = 1.0  # seconds for which what was found is believed


@dataclass
class Site:
    """One page.

    Attributes:
        root: folder with runs and images.
        write: whether anything may be changed.
        features: that a reward is fitted on.
        base: what it samples and aligns.
    """

    root: Path
    write: bool
    features: str
    base: Base = field(default_factory=Base)
    jobs: Jobs = field(default_factory=Jobs)
    scoring: Scoring = field(default_factory=Scoring)
    _found: tuple[float, Folders] | None = None
    _asked: dict[tuple[Kind, Path], tuple[object, PairQuestions | StarQuestions]] = field(
        default_factory=dict
    )
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def found(self, *, now: bool = False) -> Folders:
        """What there is to show, as of a second ago or of now."""
        with self._lock:
            if now or self._found is None or time.monotonic() - self._found[0] > FRESH:
                self._found = time.monotonic(), find(self.root)
            return self._found[1]

    def pairs(self, folder: Path) -> PairQuestions:
        """The pairs of a folder, the same object for all raters; its doubts are the fit's."""
        found = self._questions("pairs", folder, PairQuestions)
        assert isinstance(found, PairQuestions)
        taste = self.scoring.taste(folder)
        found.doubt = None if taste is None else taste.doubt
        return found

    def stars(self, folder: Path) -> StarQuestions:
        """The same for single images."""
        found = self._questions("stars", folder, StarQuestions)
        assert isinstance(found, StarQuestions)
        taste = self.scoring.taste(folder)
        found.doubt = None if taste is None else taste.spread
        return found

    def fit(self, folder: Path, kind: str | None) -> Job:
        """Start the fit of a reward to a folder's judgements."""
        return self.jobs.start(commands.fit(folder, self.features, kind), folder)

    def align(self, folder: Path, beta: float, updates: int) -> Job:
        """Start an alignment with the reward that is fitted to a folder.

        Raises:
            UserError: there is none, or another command is running.
        """
        if not self.scoring.is_fitted(folder):
            raise UserError("fit a reward first")
        run = self.next_folder("aligned")
        return self.jobs.start(commands.align(self.base, folder, beta, updates, run), run)

    def sample(self, source: str, prompts: Sequence[str], n: int, seed: int) -> Job:
        """Start sampling images to rate."""
        out = self.next_folder("fresh", below=IMAGES)
        return self.jobs.start(commands.sample(source, prompts, n, seed, out), out)

    def draw_gallery(self, run: Path, n: int) -> Job:
        """Start drawing a run at each checkpoint and strength."""
        out = place_of(self.root, run)
        return self.jobs.start(commands.gallery(run, n, out), out)

    def export(self, run: Path, form: str) -> Job:
        """Start writing a run's policy in a format that other programs read."""
        out = exports.place_of(self.root, run, form)
        return self.jobs.start(commands.export(run, form, out), out)

    def compare(self, runs: Sequence[Path]) -> Job:
        """Start measuring runs against the tilt's own curve."""
        out = self.next_folder("comparison", below=COMPARISONS)
        return self.jobs.start(commands.compare(runs, out), out)

    def next_folder(self, name: str, below: str = "") -> Path:
        """A name that nothing has yet."""
        number = 1
        while (self.root / below / f"{name}-{number}").exists():
            number += 1
        return self.root / below / f"{name}-{number}"

    def close(self) -> None:
        self.jobs.close()
        self.scoring.close()

    def _questions(
        self, kind: Kind, folder: Path, make: type[PairQuestions] | type[StarQuestions]
    ) -> PairQuestions | StarQuestions:
        """Made anew when the images of the folder are others; what was asked stays open."""
        with self._lock:
            images = images_of(folder)
            known = self._asked.get((kind, folder))
            if known is None or known[0] != images:
                names = [image.name for image in images]
                prompts = [prompt_of(image) for image in images]
                asking = make(folder, names, prompts)
                if known is not None:
                    asking.go_on_from(known[1])
                known = images, asking
                self._asked[kind, folder] = known
            return known[1]
