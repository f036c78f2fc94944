"""The noise levels that a sampler visits, and the kernels that need nothing but those."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess


@dataclass(frozen=True)
class Levels:
    """Of a sampler, k = 0 first: shape (K + 1,).

    Attributes:
        timestep: the model's own conditioning value; 0 at k = 0.
        alpha_bar: signal power, float64.
    """

    timestep: Tensor
    alpha_bar: Tensor

    def pairs(self) -> tuple[Tensor, Tensor]:
        """alpha_bar of x_k and of x_{k-1}; at the unused k = 0 both are harmless."""
        return self.alpha_bar, torch.cat([self.alpha_bar[:1], self.alpha_bar[:-1]])

    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{k-1} | x_k, x_0) (arXiv 2006.11239, equation 7)."""
        here, following = self.pairs()
        variance = (1.0 - following) / (1.0 - here).clamp_min(1e-12) * (1.0 - here / following)
        return torch.where(torch.arange(len(here)) == 0, 0.0, variance).clamp_min(0.0)


def tabulated(levels: Levels, clip: float | None = None, **tables: Tensor) -> ReverseProcess:
    """The process with these tables of coefficients; those not given are 0."""
    zero = torch.zeros_like(levels.alpha_bar)
    parts = {"from_x": zero, "from_x0": zero, "from_epsilon": zero} | tables
    return ReverseProcess(
        timestep=levels.timestep,
        alpha_bar=levels.alpha_bar.float(),
        clip=clip,
        **{name: part.float() for name, part in parts.items()},
    )


def ddim_kernels(levels: Levels, eta: float, clip: float | None = None) -> ReverseProcess:
    """DDIM (arXiv 2010.02502, equations 12 and 16); eta 1 has DDPM's variance."""
    _, following = levels.pairs()
    variance = eta**2 * levels.posterior_variance()
    return tabulated(
        levels,
        clip,
        from_x0=following.sqrt(),
        from_epsilon=(1.0 - following - variance).clamp_min(0.0).sqrt(),
        sigma=variance.sqrt(),
    )
