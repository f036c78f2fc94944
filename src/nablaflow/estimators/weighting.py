"""Weights of the steps: what a squared residual of value gradients counts at each k.

A residual of value gradients at step k is a shift of the kernel's mean by m_k times it, with m_k of
`ValueStep.scale`, which costs m_k / 2 times its square in KL divergence between two kernels of
variance m_k. So ``nats`` weighs every step alike: m_k is sigma_k^2 where the kernel has that
variance, and c_k, which the posterior of unit data has, for the exact step; a kernel's floor on
sigma_k then blows nothing up. ``sigma2`` is sigma_k^2 whatever the step; ``alpha_bar`` and ``snr``
multiply that by the trust in a state's signal; ``constant`` is the published choice, whose unit
differs by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion import ValueStep
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.typing import Batch, Steps

Weighting = Literal["nats", "constant", "sigma2", "alpha_bar", "snr"]
"""m_k; 1; sigma_k^2; sigma_k^2 alpha_bar_k; sigma_k^2 min(1, alpha_bar_k / (1 - alpha_bar_k))."""

Table = Float[Tensor, "levels"]

WEIGHTINGS: dict[str, Callable[[ReverseProcess], Table]] = {
    "constant": lambda process: torch.ones_like(process.sigma),
    "sigma2": lambda process: process.sigma.square(),
    "alpha_bar": lambda process: process.sigma.square() * process.alpha_bar,
    # min-SNR's bound (arXiv 2303.09556): without it the last steps would be all that counts.
    "snr": lambda process: (
        process.sigma.square() * (process.alpha_bar / (1.0 - process.alpha_bar)).clamp_max(1.0)
    ),
}
"""Adding a weighting is one line here, and its name above."""

BANDS = 4


def step_weight(
    weighting: Weighting, process: ReverseProcess, k: Steps, step: ValueStep | None = None
) -> Batch:
    """The weight of each transition's squared residual of value gradients.

    Args:
        step: the rule that the kernels follow; None: the published one.
    """
    if weighting == "nats":
        table = process.sigma.square() if step is None else step.scale
    else:
        table = WEIGHTINGS[weighting](process)
    return table.float().to(k.device)[k]


def by_band(name: str, values: Batch, process: ReverseProcess, k: Steps) -> dict[str, Batch]:
    """``values`` as one figure for each quarter of the steps, 0 in the rows of the others.

    The means of the figures over a batch add up to the mean of ``values``: each is its band's
    share. A name ends with the band's steps, such as ``k01-05``.
    """
    edges = torch.arange(BANDS + 1) * process.steps // BANDS
    digits = len(str(process.steps))
    bands = {}
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if high > low:
            label = f"{name}_k{low + 1:0{digits}d}-{high:0{digits}d}"
            bands[label] = torch.where((k > low) & (k <= high), values, 0.0)
    return bands
