"""A figure with its error: the one type of all metrics, and the two ways to combine errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

LEVEL = 0.95
"""Share of intervals that hold the truth, where nothing else is asked for."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its error, all in the figure's own units.

    Attributes:
        value: of the images as they are.
        se: one standard error.
        interval: its ends, where they were found by themselves; None: the normal one at `LEVEL`.
        n: images of the model that the figure is of; None where nobody asked.
    """

    value: float
    se: float
    interval: tuple[float, float] | None = None
    n: int | None = None

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return (
            self.value - normal_half_width(self.se) if self.interval is None else self.interval[0]
        )

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return (
            self.value + normal_half_width(self.se) if self.interval is None else self.interval[1]
        )

    def as_dict(self) -> dict[str, float | int | None]:
        """As ``nablaflow eval --json`` has it."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def normal_half_width(se: float, level: float = LEVEL) -> float:
    """Half of a normal interval: z times the error, z the normal quantile of (1 + level) / 2."""
    return se * NormalDist().inv_cdf((1.0 + level) / 2.0)


def average(estimates: Iterable[Estimate]) -> Estimate:
    """Mean of independent estimates; the error is that of the mean over exactly these.

    Used over prompts: the prompts are the ones asked for, not a sample of prompts, so how much a
    figure differs between prompts is no part of its error.
    """
    each = list(estimates)
    value = math.fsum(e.value for e in each) / len(each)
    return Estimate(value, math.hypot(*(e.se for e in each)) / len(each))


def jackknife_variance(leave_outs: Tensor) -> float:
    """Variance of an estimate from its values with one of ``n`` equal parts left out, shape (n,).

    Efron and Stein (1981): in expectation not below the true variance over n - 1 such parts, if
    the statistic is symmetric in them.
    """
    n = len(leave_outs)
    return (n - 1) * leave_outs.var(unbiased=False).item()
