"""What kernels that can only be moved are able to reach: a chain on a line, all of it by sums.

    python benchmarks/kernel_shape.py

A sampler's kernels are normal with a variance that no training changes. Here the state is one
number, so the whole chain is a product of matrices over a lattice: its value V_k, the log of
E[exp(beta r(x_0)) | x_k] under the sampler itself, each tilted kernel, and the distribution in
which any choice of means ends are found without noise, network or samples. What is left of the
tilt by the *right* means is what no training of means along the chain can mend.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nablaflow.diffusion import build_process, kernel_mean, predict_from, value_step
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.diffusion.variance import widened

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
}
"""Stable Diffusion's."""
LATTICE = torch.linspace(-5.0, 5.0, 1201, dtype=torch.float64)
GAP = (LATTICE[1] - LATTICE[0]).item()


@dataclass(frozen=True)
class Prior:
    """A mixture on the line, of mean 0 and variance 1."""

    means: Tensor
    deviation: float

    @staticmethod
    def of(means: list[float], deviation: float) -> Prior:
        places = torch.tensor(means, dtype=torch.float64)
        centred = places - places.mean()
        spread = (centred.square().mean() + deviation**2).sqrt()
        return Prior(centred / spread, deviation / spread.item())

    def posterior(self, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of x_0, and its variance, given x_k at each place of the lattice."""
        signal, own = alpha_bar.sqrt(), self.deviation**2
        variance = alpha_bar * own + 1.0 - alpha_bar
        off = LATTICE[:, None] - signal * self.means
        share = torch.softmax(-0.5 * off.square() / variance, 1)
        ends = self.means + signal * own / variance * off
        mean = (share * ends).sum(1)
        left = own * (1.0 - alpha_bar) / variance
        return mean, (share * ends.square()).sum(1) - mean.square() + left

    def density(self, alpha_bar: Tensor) -> Tensor:
        variance = alpha_bar * self.deviation**2 + 1.0 - alpha_bar
        off = LATTICE[:, None] - alpha_bar.sqrt() * self.means
        found = torch.exp(-0.5 * off.square() / variance).sum(1)
        return found / found.sum()


PRIORS = {
    "one mode": Prior.of([0.0], 1.0),
    "two modes": Prior.of([-1.0, 1.0], 0.15),
    "six modes": Prior.of([-1.6, -1.0, -0.3, 0.4, 1.0, 1.7], 0.06),
}
REWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: 0.8 * x,
    "bump": lambda x: 3.0 * torch.exp(-0.5 * ((x - 0.7) / 0.3).square()),
}
"""Times beta."""


def rows(mean: Tensor, variance: Tensor | float) -> Tensor:
    """Normal kernels over the lattice, one a row."""
    spread = torch.as_tensor(variance, dtype=torch.float64).expand(len(mean)).unsqueeze(1)
    return torch.softmax(-0.5 * (LATTICE - mean[:, None]).square() / spread, 1)


def slope(values: Tensor) -> Tensor:
    (found,) = torch.gradient(values, spacing=GAP)
    return found


def at(values: Tensor, places: Tensor) -> Tensor:
    """Values between the lattice's places, on straight lines."""
    left = ((places - LATTICE[0]) / GAP).floor().clamp(0, len(LATTICE) - 2).long()
    share = ((places - LATTICE[left]) / GAP).clamp(0.0, 1.0)
    return values[left] * (1.0 - share) + values[left + 1] * share


@dataclass(frozen=True)
class Chain:
    """A sampler of a prior, and the tilt of where it ends.

    Attributes:
        tilt: beta r at each place of the lattice.
    """

    prior: Prior
    process: ReverseProcess
    tilt: Tensor

    @staticmethod
    def of(prior: Prior, steps: int, variance: str, tilt: Tensor) -> Chain:
        process = build_process(SCHEDULE, "ddim", steps, 1.0, sigma_floor=0.01)
        if variance == "analytic":
            levels = process.alpha_bar.double()
            left = [(prior.density(a) * prior.posterior(a)[1]).sum() for a in levels]
            process = widened(process, torch.stack(left))
        return Chain(prior, process, tilt)

    @property
    def levels(self) -> range:
        return range(1, self.process.steps + 1)

    def mean(self, k: int) -> Tensor:
        """Of the reference's kernel at x_k."""
        x0_hat, x = (v.reshape(-1, 1, 1, 1) for v in (self.ahead(k), LATTICE))
        level = torch.full((len(LATTICE),), k)
        alpha_bar = self.process.alpha_bar[level].double().reshape(-1, 1, 1, 1)
        prediction = predict_from(x0_hat, x, alpha_bar, "sample")
        return kernel_mean(self.process, x, prediction, level).flatten()

    def ahead(self, k: int) -> Tensor:
        """x0_hat."""
        return self.prior.posterior(self.process.alpha_bar[k].double())[0]

    def variance(self, k: int) -> float:
        return self.process.sigma[k].double().square().item()

    def kernel(self, k: int) -> Tensor:
        return rows(self.mean(k), self.variance(k))

    @cached_property
    def looked_ahead(self) -> list[Tensor]:
        """Beta r(x0_hat) for k = 0, ..., K."""
        return [self.tilt, *(at(self.tilt, self.ahead(k)) for k in self.levels)]

    @cached_property
    def values(self) -> list[Tensor]:
        """V_k for k = 0, ..., K, of the sampler itself."""
        found = [self.tilt]
        for k in self.levels:
            found.append(torch.logsumexp(self.kernel(k).log() + found[-1], 1))
        return found

    @cached_property
    def controlled(self) -> list[Tensor]:
        """The kernels' means of least KL from the policy's paths to the tilt's, by k from 1.

        By dynamic programming: W_k(x) = max over m of E[W_{k-1}(x')] - (m - mean)^2 / 2 sigma_k^2,
        x' normal about m, with W_0 = beta r. What adjoint matching, or DDPO with the KL, is for.
        """
        best, found = self.tilt, []
        for k in self.levels:
            gain = rows(LATTICE, self.variance(k)) @ best
            cost = (LATTICE - self.mean(k)[:, None]).square() / (2.0 * self.variance(k))
            best, chosen = (gain - cost).max(1)
            found.append(LATTICE[chosen])
        return found

    def tilted(self, values: list[Tensor], k: int) -> Tensor:
        """The kernels at x_k of the tilt with these values, of whatever shape."""
        return torch.softmax(self.kernel(k).log() + values[k - 1], 1)

    @cached_property
    def start(self) -> Tensor:
        """Where the reference ends."""
        return self.ends(self.kernel)

    def ends(self, kernel: Callable[[int], Tensor]) -> Tensor:
        """The distribution of the last state."""
        found = torch.softmax(-0.5 * LATTICE.square(), 0)
        for k in reversed(self.levels):
            found = found @ kernel(k)
        return found


# --- rules: the kernels at level k, of a chain and values of its states ---------------------------


def right_means_and_variances(chain: Chain, values: list[Tensor], k: int) -> Tensor:
    tilted = chain.tilted(values, k)
    mean = tilted @ LATTICE
    return rows(mean, (tilted @ LATTICE.square() - mean.square()).clamp_min(0.5 * GAP**2))


def right_means(chain: Chain, values: list[Tensor], k: int) -> Tensor:
    return rows(chain.tilted(values, k) @ LATTICE, chain.variance(k))


def least_reverse_kl(chain: Chain, values: list[Tensor], k: int) -> Tensor:
    return rows(chain.controlled[k - 1], chain.variance(k))


def published(chain: Chain, values: list[Tensor], k: int) -> Tensor:
    """sigma_k^2 grad V_{k-1}, taken where the kernel has its mean."""
    mean = chain.mean(k)
    return rows(mean + chain.variance(k) * at(slope(values[k - 1]), mean), chain.variance(k))


def exact(chain: Chain, values: list[Tensor], k: int) -> Tensor:
    """c_k grad V_k."""
    shift = value_step("exact", chain.process).scale[k] * slope(values[k])
    return rows(chain.mean(k) + shift, chain.variance(k))


Rule = Callable[[Chain, list[Tensor], int], Tensor]
RULES: dict[str, Rule] = {
    "right means and variances": right_means_and_variances,
    "right means": right_means,
    "means of least reverse KL": least_reverse_kl,
    "published step": published,
    "exact step": exact,
}


def measure(chain: Chain, rule: Rule, values: list[Tensor]) -> str:
    """Per cent of the way, and the Wasserstein distance to the tilt (the reference's is 1)."""
    start, goal = chain.start, torch.softmax(chain.start.log() + chain.tilt, 0)
    found = chain.ends(lambda k: rule(chain, values, k))
    way = ((found - start) @ chain.tilt) / ((goal - start) @ chain.tilt)
    far = [(part.cumsum(0) - goal.cumsum(0)).abs().sum() for part in (found, start)]
    return f"{100.0 * way.item():.0f} ({(far[0] / far[1]).item():.2f})"


def table(chains: list[Chain]) -> None:
    for name, rule in RULES.items():
        cells = [measure(chain, rule, chain.values) for chain in chains]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    for name in ("published step", "exact step"):
        cells = [measure(chain, RULES[name], chain.looked_ahead) for chain in chains]
        print(f"| {name}, by r(x0_hat) | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--variance", nargs="+", default=["posterior", "analytic"])
    given = parser.parse_args()
    for variance in given.variance:
        for reward, tilt in REWARDS.items():
            for name, prior in PRIORS.items():
                print(f"\n{variance}, {reward}, {name}: per cent of the way (distance), by steps")
                table([Chain.of(prior, k, variance, tilt(LATTICE)) for k in given.steps])


if __name__ == "__main__":
    main()
