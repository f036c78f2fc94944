"""A fitted reward's view of a folder of images, and what the tilt by it would make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow import features
from nablaflow.fitting.images import image_features
from nablaflow.metrics.diversity import diversity
from nablaflow.metrics.strength import Strength
from nablaflow.metrics.tilt import ImportanceWeights
from nablaflow.rewards.heads import mean_and_spread, read_heads
from nablaflow.typing import Features


@dataclass(frozen=True)
class Preview:
    """A folder's images reweighted by exp(beta r), as samples of the exact tilt.

    Attributes:
        diversity: within-prompt distance under the tilt, as a share of the images' own.
        weights: of each image, on average 1.
    """

    strength: Strength
    diversity: float
    weights: Tensor


@dataclass(frozen=True)
class Taste:
    """Scores of a folder's images by each member of a fitted ensemble.

    Attributes:
        scores: in log-odds for pairs, or in the ratings' unit.
        seen: features of the images, in which their diversity is measured.
        prompt_index: which images belong to one prompt.
        accuracy: share of held-out judgements that the fit agrees with; None for ratings.
    """

    names: Sequence[str]
    scores: Float[Tensor, "member image"]
    seen: Features
    prompt_index: Tensor
    accuracy: float | None = None

    @classmethod
    def of_folder(cls, reward: Path, images: Sequence[Path], prompts: Sequence[str]) -> Taste:
        """Score a folder's images.

        Raises:
            UserError: the reward, its features or an image cannot be used.
        """
        heads, about = read_heads(reward)
        extractor = features.load(about["features"], weights=about["weights"], device="cpu")
        seen = image_features(images, extractor, lambda done: None)
        texts = list(dict.fromkeys(prompts))
        index = torch.tensor([texts.index(prompt) for prompt in prompts])
        accuracy = about.get("held_out", {}).get("accuracy")
        return cls([path.name for path in images], heads(seen), seen, index, accuracy)

    def doubt(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Standard deviation over the members of the difference between two images' scores."""
        place = {name: number for number, name in enumerate(self.names)}
        sides = torch.tensor([[place[first], place[second]] for first, second in pairs])
        gaps = self.scores[:, sides[:, 0]] - self.scores[:, sides[:, 1]]
        return mean_and_spread(gaps)[1].tolist()

    def best_first(self) -> list[tuple[str, float]]:
        scored = zip(self.names, self.scores.mean(0).tolist(), strict=True)
        return sorted(scored, key=lambda pair: pair[1], reverse=True)

    def preview(self, beta: float) -> Preview:
        """Reweight the images by exp(beta r), within each prompt.

        Raises:
            UserError: a prompt has a single image.
        """
        rewards, index = self.scores.mean(0).double(), self.prompt_index
        weights = ImportanceWeights.of_rewards(rewards, index, beta).weights
        own, tilted = diversity(self.seen, index), diversity(self.seen, index, weights)
        share = tilted.value / own.value if own.value else 1.0
        return Preview(
            Strength.of_rewards(rewards, index, beta),
            share,
            weights * len(weights) / weights.sum(),
        )
