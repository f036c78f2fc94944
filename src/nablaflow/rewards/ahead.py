"""Calls of a reward that go on beside other work: a judge that is asked, a network elsewhere.

What is begun is waited for on the caller's own thread, within all that is around any call of a
reward (`nablaflow.rewards.calling`); only the waiting for another machine or device is moved.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from nablaflow.typing import Batch, Images

Begun = Callable[[], Batch]
"""Waits for the scores of a call that was begun, and raises what the call raises."""


class Queue:
    """Calls one after the other, in the order in which they were begun, beside the caller.

    After one that fails none is made: its error is that of all behind it.
    """

    def __init__(self) -> None:
        self._last: _Call | None = None
        self.dropped = False

    def begin(self, work: Callable[[], Batch]) -> Begun:
        self._last = _Call(self, work, self._last)
        self._last.start()
        return self._last.scores

    def drop(self) -> None:
        """Make none of the calls that are not under way."""
        self.dropped = True


class _Call(threading.Thread):
    """A daemon: an interrupted command does not wait for a judge."""

    def __init__(self, queue: Queue, work: Callable[[], Batch], before: _Call | None) -> None:
        super().__init__(daemon=True, name="reward")
        self._queue, self._work, self._before = queue, work, before
        self._found: Batch | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before.join()
            self.error = before.error
        if self.error is None and not self._queue.dropped:
            try:
                with torch.no_grad():  # each thread has a switch of its own
                    self._found = self._work()
            except BaseException as error:  # raised where the scores are waited for
                self.error = error

    def scores(self) -> Batch:
        self.join()
        if self.error is not None:
            raise self.error
        assert self._found is not None
        return self._found


class GoesAhead(ABC):
    """A reward whose calls need not hold the process that samples; each call is for itself."""

    @abstractmethod
    def is_apart(self, device: torch.device) -> bool:
        """Whether its work is done elsewhere than on ``device``, where the images are made."""

    @abstractmethod
    def begin(self, images: Images, prompts: list[str], queue: Queue) -> Begun:
        """Begin to score images in [0, 1], one prompt each, without a gradient."""
