"""A sampler as data: the coefficients of all its Gaussian reverse kernels in one record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Real
from torch import Tensor

from nablaflow.typing import Steps


@dataclass(frozen=True)
class ReverseProcess:
    """Every p(x_{k-1} | x_k) is normal, with standard deviation ``sigma[k]`` and this mean.

        from_x[k] x_k + from_x0[k] x0_hat(x_k) + from_epsilon[k] epsilon(x_k),   k = K, ..., 1.

    Every table has K + 1 entries and is indexed by k; of a kernel's coefficients entry 0 is unused.

    Attributes:
        timestep: the model's own conditioning value at x_k; 0 at k = 0.
        alpha_bar: signal power of x_k; entry 0 is that of the generated state.
        clip: x0_hat is clamped to [-clip, clip], as some pixel-space models ask; None: it is not.
    """

    timestep: Real[Tensor, "levels"]
    alpha_bar: Float[Tensor, "levels"]
    from_x: Float[Tensor, "levels"]
    from_x0: Float[Tensor, "levels"]
    from_epsilon: Float[Tensor, "levels"]
    sigma: Float[Tensor, "levels"]
    clip: float | None = None

    @property
    def steps(self) -> int:
        """K, the number of transitions."""
        return len(self.timestep) - 1


def at(table: Float[Tensor, "levels"], k: Steps, like: Tensor) -> Tensor:
    """The entries of ``table`` at ``k``, shaped to broadcast against ``like``."""
    # A kernel's coefficients stay float32 when the states are in half precision.
    dtype = torch.promote_types(like.dtype, torch.float32)
    values = table.to(device=like.device, dtype=dtype)[k.to(like.device)]
    return values.reshape(-1, *[1] * (like.ndim - 1))
