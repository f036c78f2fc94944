"""A reward fitted to ratings or pairs by `nablaflow reward fit`: ``path/to/reward.safetensors``.

With pessimism k it is the mean of an ensemble less k of its standard deviations, a lower bound on
what the ratings say: heads that saw the same ratings agree where those were and part elsewhere, so
alignment is not drawn to where nobody rated (ensembles as in Coste et al., arXiv 2310.02743).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from nablaflow import features
from nablaflow.errors import UserError
from nablaflow.features import FeatureExtractor
from nablaflow.hub import announce
from nablaflow.places import at_home
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
        heads, about = read_heads(at_home(name))
        if about["features"] not in features.FEATURES:
            raise UserError(
                f"reward: {name} needs the features {about['features']!r}, which are unknown here; "
                "fit it again"
            )
        pessimism = about["pessimism"] if self.pessimism is None else self.pessimism
        return NamedReward(name, FittedReward.of(heads, about, pessimism, self.weights))


@dataclass(frozen=True)
class Made:
    """The features that heads were fitted to.

    Attributes:
        fingerprint: see ``features.fingerprint``.
        weights: folder that was given in the fit; None: their own.
    """

    fingerprint: list[float]
    weights: str | None


class FittedReward:
    """An ensemble of heads on frozen features. Prompts are not looked at.

    Args:
        heads: the members.
        name: of the features, loaded when the first images are scored.
        pessimism: k, standard deviations of the ensemble that are subtracted.
        weights: of the features, see ``features.load``.
        made_of: what the heads were fitted to; None: not known, so not checked.
    """

    def __init__(
        self,
        heads: Heads,
        name: str,
        pessimism: float = 0.0,
        weights: str | None = None,
        made_of: Made | None = None,
    ) -> None:
        self.heads, self.name, self.pessimism, self.weights = heads, name, pessimism, weights
        self.made_of = made_of
        self._loaded: dict[torch.device, tuple[FeatureExtractor, Heads]] = {}

    @classmethod
    def of(
        cls, heads: Heads, about: Mapping[str, Any], pessimism: float, weights: str | None = None
    ) -> FittedReward:
        """The reward of a file; ``about`` is what ``read_heads`` says of it."""
        known = about.get("fingerprint")
        made_of = None if known is None else Made(known, about.get("weights"))
        return cls(heads, about["features"], pessimism, weights, made_of)

    def __call__(self, images: Images, prompts: list[str]) -> Batch:
        """Mean - k * standard deviation over the members, (batch,), float32."""
        mean, spread = self.mean_and_spread(images)
        return mean - self.pessimism * spread

    def mean_and_spread(self, images: Images) -> tuple[Batch, Batch]:
        """Mean over the members and their standard deviation, each (batch,), float32.

        Raises:
            UserError: at the first call, if the features' weights cannot be downloaded, or are
                others than those of the fit.
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
            self._check(extractor, device)
            self._loaded[device] = extractor, self.heads.to(device)
        return self._loaded[device]

    def _check(self, extractor: FeatureExtractor, device: torch.device) -> None:
        """Refuse features of other weights than the fit's: their scores would mean nothing."""
        if self.made_of is None:
            announce(
                f"reward: its file does not tell which weights the features {self.name} had, so "
                "that is not checked; fit it again"
            )
            return
        now = features.fingerprint(extractor, device)
        if not features.same_features(self.made_of.fingerprint, now):
            here, then = (
                "their own weights" if weights is None else f"weights {weights}"
                for weights in (self.weights, self.made_of.weights)
            )
            raise UserError(
                f"reward.weights: the features {self.name} ({here}) give other numbers than in the "
                f"fit ({then}), so the scores would be wrong; give the fit's weights (reward "
                "score: --weights), or fit it again"
            )
