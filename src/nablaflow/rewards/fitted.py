"""A reward fitted to ratings or pairs by `nablaflow reward fit`: ``path/to/reward.safetensors``.

With pessimism k it is the mean of an ensemble less k of its standard deviations, a lower bound on
what the ratings say: heads that saw the same ratings agree where those were and part elsewhere, so
alignment is not drawn to where nobody rated (ensembles as in Coste et al., arXiv 2310.02743).
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from nablaflow import features
from nablaflow.errors import UserError
from nablaflow.features import FeatureExtractor
from nablaflow.rewards.contract import NamedReward
from nablaflow.rewards.heads import Heads, mean_and_spread, read_heads
from nablaflow.rewards.settings import Load, RewardSettings
from nablaflow.typing import Batch, Images


class Fitted(RewardSettings):
    """Settings of ``{name: path/to/reward.safetensors, pessimism: 1.0}``."""

    pessimism: float | None = Field(
        default=None, ge=0, description="standard deviations that are subtracted; null: the file's"
    )
    weights: str | None = Field(
        default=None, description="folder of the features' weights; null: the published"
    )

    def build(self, name: str, load: Load) -> NamedReward:
        heads, about = read_heads(Path(name).expanduser())
        if about["features"] not in features.FEATURES:
            raise UserError(
                f"reward: {name} needs the features {about['features']!r}, which are unknown here; "
                "fit it again"
            )
        pessimism = about["pessimism"] if self.pessimism is None else self.pessimism
        return NamedReward(name, FittedReward(heads, about["features"], pessimism, self.weights))


class FittedReward:
    """An ensemble of heads on frozen features. Prompts are not looked at.

    Args:
        heads: the members.
        name: of the features, loaded when the first images are scored.
        pessimism: k, standard deviations of the ensemble that are subtracted.
        weights: of the features, see ``features.load``.
    """

    def __init__(
        self, heads: Heads, name: str, pessimism: float = 0.0, weights: str | None = None
    ) -> None:
        self.heads, self.name, self.pessimism, self.weights = heads, name, pessimism, weights
        self._loaded: dict[torch.device, tuple[FeatureExtractor, Heads]] = {}

    def __call__(self, images: Images, prompts: list[str]) -> Batch:
        """Mean - k * standard deviation over the members, (batch,), float32."""
        mean, spread = self.mean_and_spread(images)
        return mean - self.pessimism * spread

    def mean_and_spread(self, images: Images) -> tuple[Batch, Batch]:
        """Mean over the members and their standard deviation, each (batch,), float32.

        Raises:
            UserError: at the first call, if the features' weights cannot be had or do not fit.
        """
        extractor, heads = self._on(images.device)
        return mean_and_spread(heads(extractor(images)))

    def _on(self, device: torch.device) -> tuple[FeatureExtractor, Heads]:
        if device not in self._loaded:
            extractor = features.load(self.name, weights=self.weights, device=device)
            if extractor.dim != len(self.heads.mean):
                raise UserError(
                    f"reward.weights: these features have {extractor.dim} numbers an image, the "
                    f"heads were fitted to {len(self.heads.mean)}; use the weights of the fit"
                )
            self._loaded[device] = extractor, self.heads.to(device)
        return self._loaded[device]
