"""The figures of a run: reference, policy and exact tilt side by side, as in ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.diversity import diversity_of_clouds
from nablaflow.metrics.energy import energy_distance_by_prompt
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.frechet import (
    Projection,
    frechet_distance,
    frechet_to_reweighted,
    has_full_rank,
)
from nablaflow.metrics.pairs import Cloud, clouds
from nablaflow.metrics.reward import reward_mean
from nablaflow.metrics.tilt import ImportanceWeights
from nablaflow.typing import Batch, Features

Column = dict[str, float | int | None]
"""Of reference, policy or exact tilt: figures by name, each with its ``*_se`` beside it, and n."""


class _Figures(TypedDict):
    """Those of every run."""

    reference: Column
    policy: Column
    exact_tilt: Column | None
    effective_sample_size: float | None
    closing: float | None
    closing_se: float | None


class Summary(_Figures, total=False):
    """What ``summary.json`` holds of figures, ready for ``json.dump``.

    Attributes:
        exact_tilt: None below the least effective sample size, as is then each
            ``distance_to_tilt``.
        effective_sample_size: of the bank under the tilt, the smallest over prompts, either way;
            None without a bank.
        closing: how much of the way to the tilt's reward is closed, see the function of that name.
        closing_se: its standard error.
        bank_for_tilt: how large a bank would be enough, where there is no exact tilt.
    """

    bank_for_tilt: int


@dataclass(frozen=True)
class SampleSet:
    """Images as the figures see them.

    Attributes:
        features: (n, d).
        rewards: (n,).
        prompt_index: (n,) integers; equal means the same prompt, in every set that is compared.
    """

    features: Features
    rewards: Batch
    prompt_index: Tensor

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Yardstick:
    """A bank of reference samples prepared for comparing others with it and with its tilt.

    Attributes:
        bank: independent samples of the reference model.
        projection: the frame of the Fréchet distance, fitted to the bank.
        tilt: importance weights of the bank's rows.
        target: the weighted bank by prompt; keeps its distances once measured.
    """

    bank: SampleSet
    projection: Projection
    tilt: ImportanceWeights
    target: Mapping[int, Cloud]

    @classmethod
    def of(cls, bank: SampleSet, beta: float, dim: int = 32) -> Yardstick:
        """Prepare a bank.

        Args:
            bank: thousands of samples a prompt; no row may be among the samples compared with it.
            beta: the tilt.
            dim: dimensions of the Fréchet distance; it is left out where a prompt has fewer than
                twice as many samples.
        """
        tilt = ImportanceWeights.of_rewards(bank.rewards, bank.prompt_index, beta)
        target = clouds(bank.features, bank.prompt_index, tilt.weights)
        return cls(bank, Projection.fit(bank.features, dim), tilt, target)

    @cached_property
    def projected(self) -> Tensor:
        return self.projection.apply(self.bank.features)

    def column(self, samples: SampleSet) -> Column:
        """The figures of a model's samples.

        Raises:
            UserError: a prompt has a single sample, or the prompts are not those of the bank.
        """
        own = clouds(samples.features, samples.prompt_index)
        if own.keys() != self.target.keys():
            raise UserError("the samples and the reference bank must have the same prompts")
        to_tilt = energy_distance_by_prompt(own, self.target) if self.tilt.trustworthy else None
        return _column(
            len(samples),
            reward_mean=reward_mean(samples.rewards, samples.prompt_index),
            diversity=diversity_of_clouds(own),
            distance_to_reference=self._distance_to_reference(samples),
            distance_to_tilt=to_tilt,
        )

    def exact_tilt(self) -> Column | None:
        """The figures of the tilt itself from the weighted bank; None where they would mislead.

        Its distance to itself is the floor: one half of the weighted bank against the other.
        """
        if not self.tilt.trustworthy:
            return None
        index, weights = self.bank.prompt_index, self.tilt.weights
        ranked = has_full_rank(index, self.projection.dim)
        halves = [{p: _half(cloud, side) for p, cloud in self.target.items()} for side in (0, 1)]
        column = _column(
            len(self.bank),
            reward_mean=reward_mean(self.bank.rewards, index, weights),
            diversity=diversity_of_clouds(self.target),
            distance_to_reference=(
                frechet_to_reweighted(self.projected, index, weights) if ranked else None
            ),
            distance_to_tilt=energy_distance_by_prompt(halves[0], halves[1]),
        )
        return column | {"effective_sample_size": self.tilt.effective_sample_size}

    def summary(self, reference: SampleSet, policy: SampleSet) -> Summary:
        """The figures of both, of the exact tilt, and how much of the way to it is closed.

        Raises:
            UserError: as `column`.
        """
        start, end, goal = self.column(reference), self.column(policy), self.exact_tilt()
        closed = closing(start, end, goal)
        return Summary(
            reference=start,
            policy=end,
            exact_tilt=goal,
            effective_sample_size=self.tilt.effective_sample_size,
            closing=closed and closed.value,
            closing_se=closed and closed.se,
        )

    def _distance_to_reference(self, samples: SampleSet) -> Estimate | None:
        indices = (samples.prompt_index, self.bank.prompt_index)
        if not all(has_full_rank(index, self.projection.dim) for index in indices):
            return None
        projected = self.projection.apply(samples.features)
        return frechet_distance(projected, indices[0], self.projected, indices[1])


def summarize(
    reference: SampleSet, policy: SampleSet, bank: SampleSet, beta: float, *, dim: int = 32
) -> Summary:
    """The figures of a run.

    Args:
        reference: samples of the reference model that are not in the bank.
        policy: samples of the policy, as many, of the same prompts.
        bank: many samples of the reference model, of the same prompts.
        beta: the tilt.
        dim: dimensions of the Fréchet distance, see ``Yardstick.of``.

    Raises:
        UserError: a prompt has a single sample, or the three have different prompts.
    """
    return Yardstick.of(bank, beta, dim).summary(reference, policy)


def add_figures(column: Column, figures: Mapping[str, Estimate]) -> Column:
    """A column with further figures by name; what it has already stays."""
    further = _column(0, **figures)
    del further["n"]
    return {**further, **column}


def closing(reference: Column, policy: Column, tilt: Column | None) -> Estimate | None:
    """How much of the way from the reference's mean reward to the tilt's the policy has gone.

    The fraction f = (policy - reference) / (tilt - reference), with the delta-method error of a
    ratio of three independent means; shared seeds of reference and policy make that too large while
    f is below 1. More than 1 is past the tilt: more reward than beta asks for.

    Returns:
        None without a tilt, or where the way is within two standard errors of zero.
    """
    if tilt is None:
        return None
    return part_of_way(*(_estimate(column, "reward_mean") for column in (reference, policy, tilt)))


def part_of_way(start: Estimate, end: Estimate, goal: Estimate) -> Estimate | None:
    """The same of the three mean rewards."""
    way = goal.value - start.value
    if abs(way) <= 2.0 * math.hypot(goal.se, start.se):
        return None
    fraction = (end.value - start.value) / way
    error = math.hypot(end.se, (1.0 - fraction) * start.se, fraction * goal.se)
    return Estimate(fraction, error / abs(way))


def _half(cloud: Cloud, side: int) -> Cloud:
    """Every other row of a cloud."""
    return Cloud.of(cloud.points[side::2], cloud.weights[side::2])


def _finite(value: float) -> float | None:
    """None for what too few samples leave undefined: JSON has no NaN."""
    return value if math.isfinite(value) else None


def _column(n: int, **figures: Estimate | None) -> Column:
    column: Column = {}
    for name, figure in figures.items():
        column[name] = figure and _finite(figure.value)
        column[f"{name}_se"] = figure and _finite(figure.se)
    return column | {"n": n}


def _estimate(column: Column, name: str) -> Estimate:
    value, se = column[name], column[f"{name}_se"]
    if value is None or se is None:
        raise ValueError(f"{name} is missing")
    return Estimate(value, se)
