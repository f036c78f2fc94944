"""What the page holds while it is served: where it looks, what it may do, who is judging."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nablaflow.errors import UserError
from nablaflow.studio.folders import Folders, find, images_of, prompt_of
from nablaflow.studio.jobs import Job, Jobs
from nablaflow.studio.pairs import PairQuestions
from nablaflow.studio.taste import Taste

Value = TypeVar("Value")
REWARD = "reward.safetensors"


@dataclass
class Site:
    """One page.

    Attributes:
        root: folder with runs and images.
        write: whether anything may be changed.
        features: that a reward is fitted on.
        base: the command that aligns, less the reward, beta and the run's folder.
    """

    root: Path
    write: bool
    features: str
    base: Sequence[str] = ("demo",)
    jobs: Jobs = field(default_factory=Jobs)
    _kept: dict[tuple[str, Path], tuple[object, object]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def found(self) -> Folders:
        return find(self.root)

    def judging(self, folder: Path) -> PairQuestions:
        """The pairs of a folder, the same object for all raters; its doubts are the fit's."""
        images = images_of(folder)

        def make() -> PairQuestions:
            return PairQuestions(folder, [i.name for i in images], [prompt_of(i) for i in images])

        judging = self._keep("judging", folder, tuple(images), make)
        taste = self.taste(folder)
        judging.doubt = None if taste is None else taste.doubt
        return judging

    def taste(self, folder: Path) -> Taste | None:
        """The fitted reward's view of a folder; None while none is fitted to it."""
        reward, images = folder / REWARD, images_of(folder)
        if reward.is_symlink() or not reward.is_file() or not images:
            return None
        state = (reward.stat().st_mtime_ns, tuple(images))
        prompts = [prompt_of(image) for image in images]
        return self._keep("taste", folder, state, lambda: Taste.of_folder(reward, images, prompts))

    def fit(self, folder: Path) -> Job:
        """Start the fit of a reward to a folder's judgements."""
        return self.jobs.start(fit_command(folder, self.features))

    def align(self, folder: Path, beta: float, updates: int) -> Job:
        """Start an alignment with the reward that is fitted to a folder.

        Raises:
            UserError: there is none, or another command is running.
        """
        if not (folder / REWARD).is_file():
            raise UserError("fit a reward first")
        return self.jobs.start(align_command(self, folder, beta, updates))

    def next_run(self) -> Path:
        """A name that nothing has yet."""
        number = 1
        while (self.root / f"aligned-{number}").exists():
            number += 1
        return self.root / f"aligned-{number}"

    def _keep(self, kind: str, folder: Path, state: object, make: Callable[[], Value]) -> Value:
        """What ``make`` gives, made anew when the state of the folder is another."""
        with self._lock:
            known = self._kept.get((kind, folder))
            if known is None or known[0] != state:
                known = self._kept[kind, folder] = (state, make())
            value: Value = known[1]  # type: ignore[assignment]
            return value


def fit_command(folder: Path, features: str) -> list[str]:
    out = str(folder / REWARD)
    return ["reward", "fit", str(folder), "--features", features, "--out", out, "--overwrite"]


def align_command(site: Site, folder: Path, beta: float, updates: int) -> list[str]:
    return [
        *site.base,
        f"reward={folder / REWARD}",
        f"method.beta={beta:g}",
        f"training.updates={updates}",
        f"output_dir={site.next_run()}",
    ]
