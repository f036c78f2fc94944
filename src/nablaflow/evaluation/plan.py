"""Which metrics are measured, and what they look through, for eval, summary and guard alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from nablaflow.config.settings import EvaluationSettings
from nablaflow.errors import UserError
from nablaflow.evaluation.sampled import ImageLook, Sampled
from nablaflow.evaluation.spaces import Space, check_features, load_spaces
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.catalog import DEFAULT, chosen_metrics
from nablaflow.metrics.contract import CHOSEN, Metric, View
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.quadratic import euclidean

REWARDS = "rewards"
ALWAYS = {"reward": "reward_mean", "diversity": "diversity"}
"""Metrics that every summary has, and their keys there."""
PIXELS = "pixels"
"""The features of a run's own figures."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured, its networks loaded.

    Attributes:
        features: name of the space that most metrics look at.
        metrics: by name.
        spaces: looks by name, those of ``metrics``.
        refused: metrics left out, and why.
    """

    features: str
    metrics: Mapping[str, Metric]
    spaces: Mapping[str, Space]
    refused: Mapping[str, str]

    @classmethod
    def of(
        cls,
        names: Sequence[str] | None,
        features: str,
        n: int,
        prompts: int,
        device: torch.device,
        *,
        setting: str = "--metrics",
        number: str = "--n",
    ) -> EvaluationPlan:
        """Choose metrics and load what they look through, before anything is sampled.

        Args:
            names: of metrics, each of which must be measured; None takes the default ones, less
                those that ``n`` images are too few for.
            features: a name of `spaces.FEATURES`.
            n: images of a model.
            prompts: among which they are spread.
            setting: where the names come from, for a message.
            number: what ``n`` is set by, for a message.

        Raises:
            UserError: unknown metric or features, too few images, a missing package or weights.
        """
        check_features(features)
        metrics = chosen_metrics(DEFAULT if names is None else names, setting)
        spaces = _spaces(metrics, features, device)
        refused = dict(_too_few(metrics, features, spaces, n, prompts, number))
        if names is not None and refused:
            raise UserError(next(iter(refused.values())))
        kept = {name: metric for name, metric in metrics.items() if name not in refused}
        for metric in kept.values():
            metric.ready()
        return cls(features, kept, spaces, refused)

    @classmethod
    def of_summary(
        cls, settings: EvaluationSettings, prompts: int, device: torch.device
    ) -> EvaluationPlan:
        """What ``evaluation.metrics`` names, by the features of the other figures.

        Raises:
            UserError: as `of` says; or a metric that every summary has.
        """
        for name in ALWAYS.keys() & settings.metrics:
            raise UserError(
                f"evaluation.metrics: {name} is measured always, as {ALWAYS[name]}; leave it out"
            )
        return cls.of(
            settings.metrics,
            PIXELS,
            settings.n,
            prompts,
            device,
            setting="evaluation.metrics",
            number="evaluation.n=",
        )

    def looks(self) -> dict[str, ImageLook]:
        return {name: space.look for name, space in self.spaces.items()}

    def measure(
        self, own: Sampled, reference: Sampled, seed: int, told: Callable[[int], None]
    ) -> dict[str, Estimate]:
        """Every figure of a model's images; the draws of each depend on the seed alone.

        Args:
            reference: images of the reference by other noise, which distances are measured from.
        """
        figures = {}
        for name, metric in self.metrics.items():
            resampling = Resampling(torch.Generator().manual_seed(seed))
            view, known = (self._view(metric.space, sampled) for sampled in (own, reference))
            figures[name] = metric.measure(view, known, resampling)
            told(1)
        return figures

    def _view(self, space: str, sampled: Sampled) -> View:
        index = sampled.samples.prompt_index
        if space == REWARDS:
            return View(sampled.samples.rewards, index, euclidean)
        name = _named(space, self.features)
        return View(sampled.rows[name], index, self.spaces[name].distance)


def _named(space: str, features: str) -> str:
    return features if space == CHOSEN else space


def _spaces(metrics: Mapping[str, Metric], features: str, device: torch.device) -> dict[str, Space]:
    names = {metric.space for metric in metrics.values()} - {REWARDS}
    return load_spaces({_named(name, features) for name in names}, device)


def _too_few(
    metrics: Mapping[str, Metric],
    features: str,
    spaces: Mapping[str, Space],
    n: int,
    prompts: int,
    number: str,
) -> Iterator[tuple[str, str]]:
    for name, metric in metrics.items():
        dim = 1 if metric.space == REWARDS else spaces[_named(metric.space, features)].dim
        least = metric.least(prompts, dim)
        if n < least:
            use = f"{number}{least}" if number.endswith("=") else f"{number} {least}"
            yield name, f"{name}: {n} images are too few, {least} are needed; use {use}"
