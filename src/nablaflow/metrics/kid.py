"""Kernel distance to the reference (KID: Bińkowski et al., arXiv 1801.01401)."""

from __future__ import annotations

from torch import Tensor

from nablaflow.metrics.bootstrap import (
    Counts,
    Measured,
    ReferenceCounts,
    Resampling,
    measured,
    require_images,
)
from nablaflow.metrics.contract import View, double
from nablaflow.metrics.quadratic import between_mean, cubic, within_mean

LEAST = 2
"""Images of a prompt."""


def kernel_distance(
    features: Tensor, reference: Tensor, counts: Counts, reference_counts: ReferenceCounts
) -> Tensor:
    """The unbiased squared maximum mean discrepancy with the kernel (x·y / d + 1)^3.

    Equation 4 of Bińkowski et al., of the two whole samples and not of an average over subsets of
    1,000: it is a U-statistic, and unbiased at any number of images, so that between two samples
    of one distribution it scatters about zero, below as well as above.

    Args:
        features: (n, d).
        reference: (m, d).
        counts: (replicate, n).
        reference_counts: (replicate, m).
    """
    x, y = double(features), double(reference)
    within = within_mean(x, counts, cubic) + within_mean(y, reference_counts, cubic)
    return within - 2.0 * between_mean(x, y, counts, reference_counts, cubic)


def measure_kernel_distance(own: View, reference: View, resampling: Resampling) -> Measured:
    """`kernel_distance` of all prompts together.

    Raises:
        UserError: a prompt has fewer than `LEAST` images.
    """
    for view in (own, reference):
        require_images("kernel distance", view.prompt_index, LEAST)
    return measured(
        lambda c, e: kernel_distance(own.rows, reference.rows, c, e),
        resampling,
        resampling.counts(own.prompt_index),
        resampling.counts(reference.prompt_index),
        n=len(own),
    )
