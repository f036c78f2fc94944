"""A figure and its standard error, and the two ways in which errors are combined here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A figure with one standard error, both in the figure's own units."""

    value: float
    se: float


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
