"""A fitted reward's view of a folder of images, and what the tilt by it would make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow import features
from nablaflow.errors import UserError
from nablaflow.fitting.images import image_features
from nablaflow.metrics.diversity import diversity
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.reward import reward_mean
from nablaflow.metrics.strength import Strength, beta_of_effective_share
from nablaflow.metrics.tilt import ImportanceWeights
from nablaflow.rewards.heads import mean_and_spread, read_heads
from nablaflow.typing import Features

USUAL = 1 / 3  # share of the images that still counts, where the slider begins
COMPARED = 1000  # images, about, that diversity is measured on
FEW = 20  # images that count, below which a preview says little


@dataclass(frozen=True)
class Preview:
    """A folder's images reweighted by exp(beta r), as samples of the exact tilt.

    Attributes:
        reward: mean reward of the images as they are.
        tilted: under the tilt.
        diversity: within-prompt distance under the tilt, as a share of the images' own.
        weights: of each image, on average 1.
    """

    strength: Strength
    reward: Estimate
    tilted: Estimate
    diversity: Estimate
    weights: Tensor

    @property
    def trusted(self) -> bool:
        """Whether enough images count for the preview to say something."""
        return self.strength.effective_share * self.strength.n >= FEW

    def draw(self, count: int) -> list[int]:
        """Places of images as the tilt has them, heavy ones again and again, largest first.

        By systematic resampling, so that a small change of beta changes few of them.
        """
        ends = self.weights.cumsum(0) / self.weights.sum()
        marks = (torch.arange(count, dtype=ends.dtype) + 0.5) / count
        found = torch.searchsorted(ends, marks).clamp(max=len(ends) - 1)
        return sorted(found.tolist(), key=lambda at: -float(self.weights[at]))


@dataclass(frozen=True)
class Taste:
    """Scores of a folder's images by each member of a fitted ensemble.

    Attributes:
        scores: in log-odds for pairs, or in the ratings' unit.
        seen: features of the images, in which their diversity is measured.
        prompt_index: which images belong to one prompt.
        held_out: figures of the fit on judgements that it had not seen.
    """

    names: Sequence[str]
    scores: Float[Tensor, "member image"]
    seen: Features
    prompt_index: Tensor
    held_out: Mapping[str, float]

    @classmethod
    def of_folder(cls, reward: Path, images: Sequence[Path], prompts: Sequence[str]) -> Taste:
        """Score a folder's images.

        Raises:
            UserError: the reward, its features or an image cannot be used.
        """
        heads, about = read_heads(reward)
        extractor = features.load(about["features"], weights=about["weights"], device="cpu")
        seen = image_features(images, extractor, lambda done: None)
        texts = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
        index = torch.tensor([texts[prompt] for prompt in prompts])
        names = [path.name for path in images]
        return cls(names, heads(seen), seen, index, _figures(about.get("held_out")))

    def doubt(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Standard deviation over the members of the difference between two images' scores."""
        first, second = zip(*pairs, strict=True)
        gaps = self.scores[:, self._places(first)] - self.scores[:, self._places(second)]
        return mean_and_spread(gaps)[1].tolist()

    def spread(self, names: Sequence[str]) -> list[float]:
        """Standard deviation over the members of images' scores."""
        return mean_and_spread(self.scores[:, self._places(names)])[1].tolist()

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
        some = self._some
        own = diversity(self.seen[some], index[some])
        tilted = diversity(self.seen[some], index[some], weights[some])
        by = own.value or 1.0
        return Preview(
            Strength.of_rewards(rewards, index, beta),
            reward_mean(rewards, index),
            reward_mean(rewards, index, weights),
            Estimate(tilted.value / by, tilted.se / by),
            weights * len(weights) / weights.sum(),
        )

    @cached_property
    def _some(self) -> Tensor:
        """Places of the images that diversity is measured on: its cost grows with their square."""
        places = [(self.prompt_index == prompt).nonzero()[:, 0] for prompt in self._prompts]
        step = -(-len(self.names) // COMPARED)
        return torch.cat([own[::step] if len(own[::step]) > 1 else own for own in places])

    @property
    def _prompts(self) -> list[int]:
        return self.prompt_index.unique().tolist()

    def usual_beta(self) -> float:
        """At which a third of the images still counts; 1 where no beta does that."""
        rewards = self.scores.mean(0).double()
        try:
            return beta_of_effective_share(rewards, self.prompt_index, USUAL)
        except UserError:
            return 1.0

    def _places(self, names: Sequence[str]) -> list[int]:
        place = {name: number for number, name in enumerate(self.names)}
        return [place[name] for name in names]


def _figures(value: Any) -> dict[str, float]:
    """Numbers of a mapping that came from a file."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): float(v) for key, v in value.items() if isinstance(v, int | float)}
