"""What the kernels' variance costs the exact policy, and what it leaves of the paths' weights.

    python benchmarks/kernel_variance.py

Nothing is trained: the policy's network is the exact grad V_k, the difference of two mixtures'
scores, so that the distance to the tilt is the sampler's own. The weights of its trajectories,
exp(beta r) over the likelihood ratio of the paths, would all be equal if its kernels were those of
the tilt; their effective share says how much of them is left to a method that weighs by them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor, nn

from nablaflow.estimators import Path, path_log_ratio
from nablaflow.exact import GaussianMixture, Problem, named_problem
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.distances import energy_distance, mean_distance, mode_weight_error
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.paths import ALPHA_BAR
from nablaflow.memory import keep_freed_memory


class ExactValueGradient(nn.Module):
    """grad V by timestep, of flat states in the prior's own scale."""

    def __init__(self, prior: GaussianMixture, target: GaussianMixture) -> None:
        super().__init__()
        self.prior = prior.standardized()
        means = (target.means - prior.mean) / prior.scale
        covariances = target.covariances / prior.scale**2
        self.target = GaussianMixture(means, covariances, target.weights)

    def forward(self, x: Tensor, timestep: Tensor, x0_hat: Tensor) -> Tensor:
        alpha_bar = ALPHA_BAR.to(x)[timestep]
        return self.target.score(x, alpha_bar) - self.prior.score(x, alpha_bar)


@torch.no_grad()
def measure(problem: Problem, n: int) -> tuple[float, float, float]:
    """Times the floor, error of the weights, and effective share of the paths' weights."""
    target = problem.target
    if not isinstance(target, GaussianMixture):
        raise SystemExit(f"{problem.name} has no closed form; choose another problem")
    network = ExactValueGradient(problem.prior, target)
    model = MixtureModel(problem.prior, problem.process, network, PassCounter())
    condition, prompts = model.condition([]), [""] * n
    found = model.sample(prompts, torch.Generator().manual_seed(1), keep_states=True)
    points = model.points(found.x0)
    first, second = (target.sample(n, torch.Generator().manual_seed(seed)) for seed in (2, 3))
    floor = 2.0 * mean_distance(first, second) / n
    path = Path(found.x0, found.states, condition, prompts, found.transitions, found.log_prob)
    log_weight = problem.beta * problem.reward(points) - path_log_ratio(path, model)
    weight = (log_weight - log_weight.max()).exp()
    share = (weight.mean().square() / weight.square().mean()).item()
    error = mode_weight_error(points, problem.modes, problem.mode_weights)
    return energy_distance(points, first) / floor, error, share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--problems", nargs="+", default=["ring", "grid", "unequal", "quadratic", "32-dimensional"]
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 20, 50])
    parser.add_argument("--n", type=int, default=8000)
    given = parser.parse_args()
    keep_freed_memory()
    print("| problem | steps | variance | times the floor | weight error | effective share |")
    print("|---" * 6 + "|")
    for name in given.problems:
        for steps in given.steps:
            for variance in ("analytic", "posterior"):
                problem = replace(named_problem(name), steps=steps, variance=variance)
                times, error, share = measure(problem, given.n)
                print(
                    f"| {name} | {steps} | {variance} | {times:.1f} | {error:.3f} | {share:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
