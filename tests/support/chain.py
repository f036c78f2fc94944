"""A Gaussian model and a quadratic reward solved exactly: kernels, values, the tilted kernels.

Each reference kernel is N(J_k x + b_k, s_k^2 I). With V_k(x) = l_k.x - x.Q_k x / 2 + const, V_0 =
beta r and M_k = (I + s_k^2 Q_{k-1})^-1, the Gaussian integral V_k(x) = log E_ref exp V_{k-1} has

    Q_k = J_k^T Q_{k-1} M_k J_k,     l_k = J_k^T M_k (l_{k-1} - Q_{k-1} b_k)

and the tilted kernel, p_ref(x_{k-1} | x_k) exp(V_{k-1} - V_k), is
N(M_k (J_k x + b_k + s_k^2 l_{k-1}), s_k^2 M_k). No policy of covariance s_k^2 I is that kernel
unless Q = 0; but the policy that matching ends at, (mu - mu_ref) / s_k^2 = E_policy grad V_{k-1},
has its mean. As all is affine, the covariance is in no expectation of a value gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.diffusion import ReverseProcess
from nablaflow.rewards import NamedReward
from tests.support.gaussian import AffineFlow, GaussianModel


@dataclass(frozen=True)
class Affine:
    """x -> slope x + offset, on rows."""

    slope: Tensor
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.slope.T + self.offset


def x0_hat_of(model: GaussianModel, k: int) -> Affine:
    """Of the reference: E[x_0 | x_k] for N(mean, covariance)."""
    alpha_bar = model.process.alpha_bar[k].double()
    identity = torch.eye(len(model.mean), dtype=torch.float64)
    total = alpha_bar * model.covariance + (1 - alpha_bar) * identity
    slope = alpha_bar.sqrt() * model.covariance @ total.inverse()
    return Affine(slope, model.mean - alpha_bar.sqrt() * slope @ model.mean)


def kernel_of(model: GaussianModel, k: int) -> Affine:
    """The mean of the reference's kernel at x_k."""
    process, clean = model.process, x0_hat_of(model, k)
    alpha_bar = process.alpha_bar[k].double()
    identity = torch.eye(len(model.mean), dtype=torch.float64)
    per_noise = process.from_epsilon[k].double() / (1 - alpha_bar).sqrt()
    from_x0 = process.from_x0[k].double() - per_noise * alpha_bar.sqrt()
    from_x = process.from_x[k].double() + per_noise
    return Affine(from_x * identity + from_x0 * clean.slope, from_x0 * clean.offset)


@dataclass(frozen=True)
class Quadratic:
    """r(x) = b.x - x.A x / 2."""

    A: Tensor
    b: Tensor

    def named(self) -> NamedReward:
        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            x = images[:, 0].flatten(1)
            return x @ self.b.to(x) - 0.5 * ((x @ self.A.to(x)) * x).sum(1)

        return NamedReward("quadratic", reward)


@dataclass(frozen=True)
class Chain:
    """The solved problem. Lists are indexed by k; of kernels entry 0 is not used.

    Attributes:
        kernels: means of the reference's kernels.
        tilted: means of the tilted kernels.
        roots: square roots of the tilted kernels' covariances.
        values: grad V_k.
        ahead: grad r(x0_hat(x_k)), without beta and gamma.
        strength: beta gamma_k, gamma_k = alpha_bar_k but at x_0.
    """

    process: ReverseProcess
    beta: float
    kernels: list[Affine]
    tilted: list[Affine]
    roots: list[Tensor]
    values: list[Affine]
    ahead: list[Affine]
    strength: list[float]

    def looked(self, x: Tensor, k: int) -> Tensor:
        """The forward-looking part of grad V_k with gamma = alpha_bar."""
        return self.strength[k] * self.ahead[k](x)

    def flow_score(self, x: Tensor, k: int) -> Tensor:
        """The exact g_phi beside it."""
        return self.values[k](x) - self.looked(x, k)

    def flow(self, gamma: float | None = None) -> AffineFlow:
        """The same as a network; ``gamma`` as of noisy states, alpha_bar when it is None."""
        offsets, slopes = [], []
        for k in range(self.process.steps + 1):
            strength = self.strength[k] if gamma is None else self.beta * gamma
            value, ahead = self.values[k], self.ahead[k]
            offsets.append(value.offset - strength * ahead.offset)
            slopes.append((value.slope - strength * ahead.slope).T)
        return AffineFlow(self.process, torch.stack(offsets), torch.stack(slopes))

    def walk(self, x: Tensor, k: int, noise: Tensor) -> list[Tensor]:
        """x_0, ..., x_k of the tilted chain from rows ``x`` at k; ``noise`` (k + 1, n, d)."""
        states = [x]
        for level in range(k, 0, -1):
            mean = self.tilted[level](states[-1])
            states.append(mean + noise[level] @ self.roots[level].T)
        return states[::-1]


def solve(model: GaussianModel, reward: Quadratic, beta: float) -> Chain:
    process, dimension = model.process, len(model.mean)
    identity = torch.eye(dimension, dtype=torch.float64)
    nothing = Affine(identity, torch.zeros(dimension, dtype=torch.float64))
    chain = Chain(process, beta, [nothing], [nothing], [identity], [], [], [])
    Q, linear = beta * reward.A, beta * reward.b
    for k in range(process.steps + 1):
        if k > 0:
            kernel, variance = kernel_of(model, k), process.sigma[k].double().square()
            M = (identity + variance * Q).inverse()
            chain.kernels.append(kernel)
            chain.tilted.append(Affine(M @ kernel.slope, M @ (kernel.offset + variance * linear)))
            chain.roots.append(torch.linalg.cholesky(variance * M))
            linear = kernel.slope.T @ M @ (linear - Q @ kernel.offset)
            Q = kernel.slope.T @ Q @ M @ kernel.slope
        chain.values.append(Affine(-Q, linear))
        clean = x0_hat_of(model, k) if k > 0 else nothing
        pull = clean.slope.T
        chain.ahead.append(
            Affine(-pull @ reward.A @ clean.slope, pull @ (reward.b - reward.A @ clean.offset))
        )
        chain.strength.append(beta * (float(process.alpha_bar[k]) if k > 0 else 1.0))
    return chain
