"""Vendi score: how many different images a sample amounts to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nablaflow.metrics.bootstrap import Counts, Resampling, measured, require_images
from nablaflow.metrics.contract import View, double
from nablaflow.metrics.estimate import Estimate

LEAST = 4
"""Images of a prompt: with fewer a drawn sample is hardly ever different from the next."""


def vendi_score(
    features: Float[Tensor, "sample feature"], counts: Counts | None = None
) -> Float[Tensor, "replicate"]:
    """exp(-sum_i l_i log l_i), l the eigenvalues of K / n with K the cosine similarities.

    Friedman and Dieng (arXiv 2210.02410), definition 3.1; with counts its weighted form, in which
    K / n is diag(p)^{1/2} K diag(p)^{1/2} with p the counts over their sum. Between 1, all images
    are alike, and n, all are orthogonal. The eigenvalues that are not zero are also those of
    X^T diag(p) X with X the features of unit length, which is used where it is smaller.

    Args:
        features: one row an image; only its direction counts.
        counts: None counts each image once.
    """
    counts = torch.ones(1, len(features), dtype=torch.float64) if counts is None else counts
    unit = normalize(double(features), dim=1)
    return torch.stack([_score(unit, row) for row in counts / counts.sum(1, keepdim=True)])


def measure_vendi(own: View, reference: View, resampling: Resampling) -> Estimate:
    """The Vendi score within each prompt, averaged over prompts.

    Raises:
        UserError: a prompt has fewer than `LEAST` images.
    """
    require_images("vendi", own.prompt_index, LEAST)
    groups = [own.prompt_index == prompt for prompt in own.prompt_index.unique().tolist()]
    most = sum(int(rows.sum()) for rows in groups) / len(groups)

    def statistic(counts: Counts) -> Tensor:
        scores = [vendi_score(own.rows[rows], counts[:, rows]) for rows in groups]
        return torch.stack(scores).mean(0)

    counts = resampling.counts(own.prompt_index)
    return measured(statistic, resampling, counts, n=len(own), bounds=(1.0, most))


def _score(unit: Tensor, share: Tensor) -> Tensor:
    scaled = share.sqrt()[:, None] * unit
    scaled = scaled[share > 0]
    gram = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0)
    return torch.special.entr(values).sum().exp()
