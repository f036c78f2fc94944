"""The old policy: a copy of the policy's weights that follows them, and samples in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import nn

from nablaflow.models.adapters import swapped, trainable_state


@final
class OldPolicy:
    """The policy's trainable weights as they were, moved toward it when a method says so.

    Attributes:
        values: by the parameters' names.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.values = trainable_state(network)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the policy's network is the old policy.

        Weights are copied in place: leave it before the pass whose gradient is taken.
        """
        with swapped(self._network, self.values):
            yield

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Keep a share ``decay`` of it, and take the rest from the policy."""
        parameters = dict(self._network.named_parameters())
        for name, value in self.values.items():
            value.lerp_(parameters[name], 1.0 - decay)
