"""A tilt without a closed form: exact samples by rejection, and a normaliser with its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.exact.mixture import GaussianMixture, Points, check_count

NORMALISER_SAMPLES = 2**18
LEAST_ACCEPTANCE = 1e-4
_BLOCK = 2**16  # points of the prior held at a time


@runtime_checkable
class Target(Protocol):
    """What is known of a tilted distribution: a mixture has all of it in closed form."""

    @property
    def dim(self) -> int: ...

    def sample(self, n: int, generator: torch.Generator | None = None) -> Points: ...

    def log_prob(self, x: Points) -> Float[Tensor, "batch"]: ...


class RejectionTilt:
    """p(x) = prior(x) exp(log_tilt(x)) / Z with a bounded ``log_tilt``.

    Samples are exact. Z is the mean of exp(log_tilt) over `NORMALISER_SAMPLES` points of the prior.

    Attributes:
        log_normaliser: log Z.
        log_normaliser_se: one standard error of it.

    Args:
        bound: no ``log_tilt`` is above it.

    Raises:
        UserError: fewer than one point in ten thousand would be accepted.
    """

    def __init__(
        self, prior: GaussianMixture, log_tilt: Callable[[Points], Tensor], bound: float
    ) -> None:
        self.prior, self.log_tilt, self.bound = prior, log_tilt, bound
        generator = torch.Generator().manual_seed(0)
        blocks = range(NORMALISER_SAMPLES // _BLOCK)
        values = torch.cat([log_tilt(prior.sample(_BLOCK, generator)) for _ in blocks])
        accepted = (values - bound).exp()
        acceptance = accepted.mean()
        if not acceptance >= LEAST_ACCEPTANCE:  # not a number is refused too
            raise UserError(
                f"beta: the tilt would accept {acceptance.item():.1e} of the prior's points; "
                "use a smaller beta, or lower bumps"
            )
        self.acceptance = acceptance.item()
        self.log_normaliser = acceptance.log().item() + bound
        self.log_normaliser_se = (accepted.std() / acceptance).item() / NORMALISER_SAMPLES**0.5

    @property
    def dim(self) -> int:
        return self.prior.dim

    def log_prob(self, x: Points) -> Float[Tensor, "batch"]:
        """Log density at ``x``, whose error is `log_normaliser_se`."""
        return self.prior.log_prob(x) + self.log_tilt(x) - self.log_normaliser

    def sample(self, n: int, generator: torch.Generator | None = None) -> Points:
        """``n`` independent points, float64; without a generator torch's global one is used.

        Raises:
            UserError: ``n`` is no whole number of at least 1.
        """
        check_count(n)
        kept: list[Tensor] = []
        missing = n
        while missing > 0:
            proposals = int(1.2 * missing / self.acceptance) + 64
            x = self.prior.sample(min(proposals, _BLOCK), generator)
            chance = (self.log_tilt(x) - self.bound).exp()
            drawn = torch.rand(len(x), dtype=torch.float64, generator=generator)
            accepted = x[drawn < chance]
            kept.append(accepted[:missing])
            missing -= len(kept[-1])
        return torch.cat(kept)
