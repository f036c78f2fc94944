"""A rollout: what an update trains on, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from nablaflow.estimators import Path
from nablaflow.rewards import Components
from nablaflow.typing import Batch


@final
@dataclass(frozen=True, kw_only=True)
class Rollout(Path):
    """Trajectories with the rewards of their images, made once and only read afterwards.

    Attributes:
        scores: rewards of the images.
        components: by name, where the reward is made of others, the scores of each.
    """

    scores: Batch
    components: Components = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint; what the model and the method say again is left out.

        On the processor: other processes have no use for this one's accelerator.
        """
        kept = {k: v for k, v in vars(self).items() if k not in ("condition", "levels")}
        found = {**kept, "transitions": vars(self.transitions)}
        return tree_map_only(Tensor, Tensor.cpu, found)

    @staticmethod
    def rows_of(shares: Sequence[Rollout], start: int, stop: int) -> Rollout:
        """Trajectories ``start`` to ``stop`` of shares of a rollout, one behind the other."""
        path = Path.concatenate(shares).piece(start, stop)
        components = {
            name: torch.cat([share.components[name] for share in shares])[start:stop]
            for name in shares[0].components
        }
        scores = torch.cat([share.scores for share in shares])[start:stop]
        return Rollout(**vars(path), scores=scores, components=components)
