"""Fitted rewards' views of folders, worked out beside the page: no page waits for a network."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet  # of its own kind before Python 3.11
from pathlib import Path
from typing import TYPE_CHECKING

from nablaflow.studio.commands import REWARD
from nablaflow.studio.folders import images_of, prompt_of

if TYPE_CHECKING:
    from nablaflow.studio.taste import Taste

PATIENCE = 20.0  # seconds that a page waits which shows nothing without the scores


class Scoring:
    """The newest view of each folder; one is worked out at a time."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._warm: set[str] = set()
        self._known: dict[Path, tuple[object, Future[Taste]]] = {}

    def taste(self, folder: Path, patience: float = 0.0) -> Taste | None:
        """The fitted reward's view of a folder's images; None while there is none.

        Args:
            patience: seconds to wait for one that is being worked out.

        Raises:
            UserError: the reward, its features or an image cannot be used.
        """
        work = self._work(folder)
        if work is None:
            return None
        try:
            return work.result(patience)
        except NotYet:
            return None

    def is_fitted(self, folder: Path) -> bool:
        reward = folder / REWARD
        return reward.is_file() and not reward.is_symlink()

    def warm_up(self, *modules: str) -> None:
        """Load what pages will need, so that the first of them waits less."""
        if cold := set(modules) - self._warm:
            self._warm |= cold
            self._worker.submit(_load, sorted(cold))

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _work(self, folder: Path) -> Future[Taste] | None:
        images = images_of(folder)
        if not images or not self.is_fitted(folder):
            return None
        reward = folder / REWARD
        state = (reward.stat().st_mtime_ns, images)
        known = self._known.get(folder)
        if known is None or known[0] != state:
            known = state, self._worker.submit(_score, reward, images)
            self._known[folder] = known
        return known[1]


def _score(reward: Path, images: Sequence[Path]) -> Taste:
    from nablaflow.studio.taste import Taste

    return Taste.of_folder(reward, images, [prompt_of(image) for image in images])


def _load(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
