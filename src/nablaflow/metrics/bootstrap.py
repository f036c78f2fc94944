"""Bootstrap intervals: images are drawn again within each prompt, as counts and never as copies.

A drawn sample is how often each image came up. A figure over pairs leaves out the pairs of an image
with itself, however often it came up; copies of rows would bring such pairs in, at distance zero,
and every interval would lie too low. The same rule makes a covariance unbiased, which is a mean
over pairs too.

Where a figure is smooth in the images' weights and drawn samples only add to its bias, as with the
Fréchet distance, `error_of_mean` of what each image does to it gives the interval without drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.estimate import LEVEL, Estimate, normal_half_width

Counts = Float[Tensor, "replicate sample"]
"""How often each image counts, float64; in the first row each counts once."""
ReferenceCounts = Float[Tensor, "replicate reference"]
"""The same of the sample that it is compared with."""


@dataclass(frozen=True)
class Resampling:
    """How intervals are found.

    Attributes:
        generator: of the draws, on the CPU.
        replicates: samples drawn.
        level: share of the replicates inside the interval.
    """

    generator: torch.Generator
    replicates: int = 200
    level: float = LEVEL

    def counts(self, prompt_index: Tensor, distinct: int = 1) -> Counts:
        """Draw the counts of every replicate: shape (1 + replicates, n), the first row all ones.

        Of the m images of a prompt m - 1 are drawn with replacement and count m / (m - 1) each,
        so that the variance of a mean is the unbiased one at any m (McCarthy and Snowden, 1985);
        m draws would make it too small by (m - 1) / m, which is half with two images a prompt.

        Args:
            prompt_index: (n,) integers; equal means the same prompt.
            distinct: least number, 1 or 2, of different images that each prompt must draw.

        Raises:
            UserError: a prompt has a single image.
        """
        index = prompt_index.cpu()
        counts = torch.zeros(self.replicates, len(index), dtype=torch.float64)
        for prompt in index.unique().tolist():
            rows = (index == prompt).nonzero()[:, 0]
            drawn = self._drawn(len(rows), distinct)
            ones = torch.full(drawn.shape, len(rows) / (len(rows) - 1), dtype=torch.float64)
            counts[:, rows] = counts[:, rows].scatter_add(1, drawn, ones)
        return torch.cat([torch.ones(1, len(index), dtype=torch.float64), counts])

    def _drawn(self, m: int, distinct: int) -> Tensor:
        """Indices below m: shape (replicates, m - 1)."""
        if m < max(2, 2 * distinct - 1):
            raise UserError(f"a prompt has {m} images: ask for more images a prompt (--n)")
        drawn = torch.randint(m, (self.replicates, m - 1), generator=self.generator)
        while distinct > 1 and (alike := (drawn == drawn[:, :1]).all(1)).any():
            again = torch.randint(m, (int(alike.sum()), m - 1), generator=self.generator)
            drawn[alike] = again
        return drawn


def measured(
    statistic: Callable[..., Tensor],
    resampling: Resampling,
    *counts: Tensor,
    n: int,
    bounds: tuple[float, float] = (-float("inf"), float("inf")),
) -> Estimate:
    """A figure with its bootstrap interval; the standard error is the replicates' spread.

    The interval is the percentile interval of the replicates, moved by the mean of the replicates
    less the figure. A drawn sample holds fewer different images than the sample itself, so what
    depends on their number (Vendi score, recall) is shifted in every replicate;
    for means and for means over pairs the move is zero but for chance.

    Args:
        statistic: counts of each sample, (replicate, n) each, to figures (replicate,).
        counts: as `Resampling.counts` draws them, for each sample independently.
        n: images of the model that the figure is of.
        bounds: least and greatest value that the figure can have.
    """
    figures = statistic(*counts).double()
    value, drawn = figures[0].item(), figures[1:]
    tail = (1.0 - resampling.level) / 2.0
    ends = torch.quantile(drawn, torch.tensor([tail, 1.0 - tail], dtype=torch.float64))
    low, high = (ends - drawn.mean() + value).clamp(*bounds).tolist()
    return Estimate(value, drawn.std().item(), (min(low, value), max(high, value)), n)


def error_of_mean(contributions: Float[Tensor, "sample"], prompt_index: Tensor) -> float:
    """Standard error of a mean over images that are drawn within their prompts.

    sqrt(sum_p n_p s_p^2) / n, with n_p the images of prompt p and s_p^2 their unbiased variance:
    what the counts of `Resampling.counts` give the mean in the limit of many replicates.

    Args:
        contributions: (n,) float64.
        prompt_index: (n,) integers; each prompt has at least two images.
    """
    index = prompt_index.cpu()
    groups = [contributions[index == prompt] for prompt in index.unique().tolist()]
    return sqrt(sum(len(each) * each.var().item() for each in groups)) / len(contributions)


def measured_with_error(
    value: float,
    error: float,
    level: float,
    *,
    n: int,
    bounds: tuple[float, float] = (-float("inf"), float("inf")),
) -> Estimate:
    """A figure with its normal interval within its bounds.

    Args:
        value: the figure.
        error: its standard error, in the same units.
        level: share of such intervals that hold the truth, as in `Resampling`.
        n: images of the model that the figure is of.
        bounds: least and greatest value that the figure can have.
    """
    half = normal_half_width(error, level)
    low, high = (min(max(end, bounds[0]), bounds[1]) for end in (value - half, value + half))
    return Estimate(value, error, (min(low, value), max(high, value)), n)


def require_images(what: str, prompt_index: Tensor, least: int) -> None:
    """Refuse a sample with fewer than ``least`` images of some prompt.

    Raises:
        UserError: with the number of images that would do.
    """
    prompts, sizes = prompt_index.unique(return_counts=True)
    if len(prompts) == 0 or sizes.min() < least:
        found = int(sizes.min()) if len(prompts) else 0
        raise UserError(
            f"{what}: {found} images of a prompt are too few, {least} are needed; use --n "
            f"{least * max(1, len(prompts))} or more"
        )


def prompt_means(
    values: Float[Tensor, "sample"], prompt_index: Tensor, counts: Counts
) -> Float[Tensor, "replicate"]:
    """Means within each prompt, averaged over prompts, for every replicate."""
    index = prompt_index.cpu()
    means = [
        counts[:, rows] @ values[rows] / counts[:, rows].sum(1)
        for rows in (index == prompt for prompt in index.unique().tolist())
    ]
    return torch.stack(means).mean(0)
