"""Fréchet distance of two whole samples, as in FID (Heusel et al., arXiv 1706.08500).

`frechet.py` has the distance within each prompt, in few dimensions and with its bias taken off.
This is the figure that papers print: all prompts together, all dimensions, bias and all.
"""

from __future__ import annotations

from math import hypot

from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import (
    Resampling,
    error_of_mean,
    measured_with_error,
    require_images,
)
from nablaflow.metrics.contract import View, double, require_finite
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.frechet_influence import frechet_influences

LEAST = 2
"""Images of a prompt."""


def measure_frechet(own: View, reference: View, resampling: Resampling) -> Estimate:
    """Of all prompts together, with its interval to first order.

    The standard error is that of the mean over images of `frechet_influences`, of both samples,
    each image drawn within its prompt; nothing is drawn, and of ``resampling`` only the level is
    used.
    The interval is of the printed figure: the figure's own bias, of order 1/n, stays in it.

    Args:
        own: features (n, d), finite.
        reference: features (m, d), finite, of images drawn independently of the first.

    Raises:
        UserError: either sample has no more images than dimensions, a prompt has fewer than `LEAST`
            images, or features are not finite.
    """
    _require_full_rank(own, reference)
    for view in (own, reference):
        require_images("Fréchet distance", view.prompt_index, LEAST)
    require_finite("Fréchet distance", own, reference)
    found = frechet_influences(*_centred(own.rows, reference.rows))
    error = hypot(
        error_of_mean(found.first, own.prompt_index),
        error_of_mean(found.second, reference.prompt_index),
    )
    bounds = (0.0, float("inf"))
    return measured_with_error(found.distance, error, resampling.level, n=len(own), bounds=bounds)


def _require_full_rank(own: View, reference: View) -> None:
    dim, found = own.rows.shape[1], min(len(own), len(reference))
    if found <= dim:
        raise UserError(
            f"Fréchet distance: {found} images are too few for covariances in {dim} dimensions; "
            f"use --n {dim + 1} or more, or a kernel distance, which is unbiased at any number"
        )


def _centred(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 about the reference's mean: no figure depends on it, and fewer digits cancel."""
    x, y = double(features), double(reference)
    return x - y.mean(0), y - y.mean(0)
