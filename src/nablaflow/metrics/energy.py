"""Energy distance between two samples, either of them weighted (Székely and Rizzo, 2013).

D^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|, in units of the feature: zero if and only if the two
distributions are the same. This is the square of the metric, as an unbiased U-statistic: between
two samples of one distribution it scatters about zero, below as well as above.

Measured against reference samples with importance weights it is the distance to the exact tilt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nablaflow.metrics.estimate import Estimate, average, jackknife_variance
from nablaflow.metrics.pairs import Cloud, between
from nablaflow.metrics.prompts import check_prompts


def energy_distance(first: Cloud, second: Cloud) -> Estimate:
    """Squared energy distance within one prompt.

    A cloud keeps its own within term, so a fixed bank compared many times is measured once.

    The variance is the delete-one jackknife's over the rows of the first plus that over the rows
    of the second. Where the two distributions are equal the first-order terms vanish, and what is
    left is counted twice: the standard error is then too large by a factor of about sqrt(2).
    """
    by_first, by_second = between(first, second)
    x, y = first.within, second.within
    value = 2.0 * by_first.value - x.value - y.value
    without_first = 2.0 * by_first.without - x.without - y.value
    without_second = 2.0 * by_second.without - x.value - y.without
    variance = jackknife_variance(without_first) + jackknife_variance(without_second)
    return Estimate(value.item(), math.sqrt(variance))


def energy_distance_by_prompt(first: Mapping[int, Cloud], second: Mapping[int, Cloud]) -> Estimate:
    """Squared energy distance within each prompt of ``first``, averaged over them.

    Args:
        first: clouds by prompt, see ``pairs.clouds``.
        second: the same; may hold further prompts.

    Raises:
        UserError: a prompt of ``first`` is missing from ``second``.
    """
    check_prompts(first, second)
    return average(energy_distance(cloud, second[prompt]) for prompt, cloud in first.items())
