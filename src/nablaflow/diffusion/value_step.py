"""How far a value gradient moves the mean of a reverse kernel, and at which state it is taken.

The tilt p*(x_0) ∝ p_ref(x_0) exp(beta r(x_0)) changes the score at x_k by grad V_k(x_k), where
V_k(x_k) = log E_ref[exp(beta r(x_0)) | x_k]. Two rules carry that to the mean of p(x_{k-1} | x_k):

    exact       mu* - mu_ref  =  c_k grad V_k(x_k),   c_k = sqrt(a_{k-1} / a_k) (1 - a_k / a_{k-1})
    published   mu* - mu_ref  =  sigma_k^2 grad V_{k-1}(x_{k-1})

with a = alpha_bar. The first is Tweedie's formula, at any step length, wherever the kernel's mean
is that of q(x_{k-1} | x_k, x_0) at x0_hat. The second (arXiv 2412.07775, section 3.2) is the
stationary point for a Gaussian kernel of variance sigma_k^2, and the same in the limit of many
steps: for a reward that is linear over what is left open both are B_k Cov(x_0 | x) beta grad r with
the same B_k = d mu / d x0_hat, the first with what x_k leaves open, the second with what x_{k-1}
does.

They are for two tilts. The first is of the data's diffusion, whose kernels have what x_k leaves
open in their variance (`analytic`); the second of where the sampler itself ends, with kernels of
whatever variance. With the sampler's own (`posterior`) it ends in less than the data's variance, so
for a value that is right the first goes too far (`tests/diffusion/test_value_step.py`); by
r(x0_hat) on images it is the nearer one (docs/estimators.md).

At alpha_bar_k = 0 (zero terminal SNR, flow matching from pure noise) c_k is infinite and grad V_k
is 0. The published rule needs neither, and takes that one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nablaflow.diffusion.kernels import has_posterior_means, mean_per_score
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError

Step = Literal["exact", "published"]


@dataclass(frozen=True)
class ValueStep:
    """One rule as tables by k = 0, ..., K; entry 0 is unused.

    Attributes:
        scale: shift of the kernel's mean for each unit of the value gradient; float64.
        level: of the state whose value gradient that is: k for x_k, k - 1 for x_{k-1}.
    """

    scale: Float[Tensor, "levels"]
    level: Int[Tensor, "levels"]


def value_step(step: Step, process: ReverseProcess) -> ValueStep:
    """The rule called ``step`` for a sampler's kernels."""
    k = torch.arange(process.steps + 1)
    variance = process.sigma.double().square()
    at_here = (process.alpha_bar > 0) & (k > 0)
    if step == "published":
        at_here = torch.zeros_like(at_here)
    scale = torch.where(at_here, mean_per_score(process).nan_to_num(), variance)
    # Between two levels of the same noise nothing moves, and nothing may be divided by it.
    return ValueStep(scale.clamp_min(1e-12), torch.where(at_here, k, (k - 1).clamp_min(0)))


def check_step(step: Step, process: ReverseProcess) -> None:
    """Raise `UserError` where the kernels' means are not what the rule is derived for."""
    if step == "exact" and not has_posterior_means(process):
        raise UserError(
            "method.step: the exact step needs kernels whose means are the posterior's, which "
            "DDIM's are for eta 1 only and flow-grpo's never; set sampler.name=ddim and "
            "sampler.eta=1, or method.step=published"
        )
