"""A rollout's images, decoded and handed to the reward as soon as enough of them are sampled.

For rewards whose work is done elsewhere (`nablaflow.rewards.ahead`): a judge is asked about the
first images while the next ones are sampled. The batches, their order and so the scores are those
of scoring after all is sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from nablaflow.estimators import Networks
from nablaflow.memory import is_out_of_memory
from nablaflow.rewards import goes_ahead
from nablaflow.rewards.ahead import Queue
from nablaflow.rewards.contract import FoundOfAny


@final
class ScoringAhead:
    """What is begun of one rollout; of a reward that is not elsewhere nothing.

    Once its context is left nothing more is asked of the reward.

    Args:
        prompts: of all its images.
    """

    def __init__(self, networks: Networks, prompts: list[str]) -> None:
        self.networks, self.prompts = networks, prompts
        self._on = goes_ahead(networks.reward, networks.model.device)
        self._queue = Queue()
        self.restart(len(prompts))

    def __enter__(self) -> ScoringAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.drop()

    def restart(self, size: int) -> None:
        """Begin the rollout, or begin it anew after memory ran out.

        Args:
            size: images that are decoded and scored at once.
        """
        self._queue.drop()
        self._queue, self._size = Queue(), size
        self._states: Tensor | None = None
        self._begun: list[Callable[[], FoundOfAny]] = []
        self._done = 0

    def add(self, x0: Tensor) -> None:
        """Take the next clean states; whole batches of them are decoded, and their scores begun.

        Raises:
            UserError: the reward breaks its contract.
        """
        if not self._on:
            return
        self._states = x0 if self._states is None else torch.cat([self._states, x0])
        try:
            while self._begin_next():
                pass
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Not the sampling's fault, which would be halved for it: it is scored afterwards.
            self._on = False
            self._queue.drop()

    def _begin_next(self) -> bool:
        """Decode and score the next batch, if all of it is there; it has to be finite."""
        assert self._states is not None
        stop = min(self._done + self._size, len(self.prompts))
        part = self._states[: stop - self._done]
        if stop == self._done or len(part) < stop - self._done or not part.isfinite().all():
            return False
        prompts = self.prompts[self._done : stop]
        images = self.networks.model.decode_in_training(part)
        self._begun.append(self.networks.reward.begin(images, prompts, self._queue))
        self._states, self._done = self._states[len(part) :], stop
        return True

    def found(self) -> list[FoundOfAny] | None:
        """What the reward gave for each batch; None where not all of them were begun.

        Raises:
            UserError: the reward breaks its contract.
        """
        if not self._on or self._done < len(self.prompts):
            return None
        return [end() for end in self._begun]
