"""Kernel distance to the reference (KID: Bińkowski et al., arXiv 1801.01401)."""

from __future__ import annotations

from torch import Tensor

from nablaflow.metrics.bootstrap import (
    Counts,
    ReferenceCounts,
    Resampling,
    measured,
    require_images,
)
from nablaflow.metrics.contract import View, double, require_finite
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.quadratic import between_mean, cubic, within_mean

LEAST = 2
"""Images of a prompt, where there are several prompts."""
LEAST_ALONE = 4
"""Images of a prompt that is the only one: of three, two drawn ones say nothing about the spread of
the pairs, and of two only one is drawn, which makes no pair."""


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


def least_images(prompts: int, dim: int) -> int:
    """Images in all, of some prompts, that the figure and its interval need; in any dimension."""
    return LEAST_ALONE if prompts == 1 else LEAST * prompts


def measure_kernel_distance(own: View, reference: View, resampling: Resampling) -> Estimate:
    """`kernel_distance` of all prompts together, in units of the kernel.

    A drawn sample of a single image makes no pair and has no figure. Among several prompts none can
    be, since each draws an image of its own; with one prompt two different images are drawn always.

    Args:
        own: features (n, d), finite.
        reference: features (m, d), finite.

    Raises:
        UserError: a prompt has fewer than `LEAST` images, the only prompt fewer than `LEAST_ALONE`,
            or features are not finite.
    """
    drawn = [_drawn(view, resampling) for view in (own, reference)]
    require_finite("kernel distance", own, reference)
    return measured(
        lambda c, e: kernel_distance(own.rows, reference.rows, c, e),
        resampling,
        *drawn,
        n=len(own),
    )


def _drawn(view: View, resampling: Resampling) -> Counts:
    alone = len(view.prompt_index.unique()) == 1
    require_images("kernel distance", view.prompt_index, LEAST_ALONE if alone else LEAST)
    return resampling.counts(view.prompt_index, distinct=2 if alone else 1)
