"""Bias of each value-gradient estimator at the optimum, against k, where grad V_k is known.

    python benchmarks/estimator_bias.py

Gaussian prior, quadratic reward: the exact tilt is Gaussian at every noise level, so grad V_k is
the difference of two linear scores, and the exact policy is known. Its trajectories are what every
estimator sees. An estimate at x_k is random, with a conditional mean that is linear in x_k; its
bias is the root mean square of that mean less grad V_k(x_k), found by least squares, over the root
mean square of grad V_k. Writes docs/images/estimator_bias.png and prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from nablaflow.estimators import (
    Adjoint,
    Estimator,
    ForwardLooking,
    Networks,
    NStep,
    TemporalDifference,
    Terminal,
)
from nablaflow.estimators import Path as Trajectories
from nablaflow.exact import GaussianMixture, Problem, QuadraticReward
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.networks import VectorFlowScore
from nablaflow.exact.paths import ALPHA_BAR
from nablaflow.report.curves import LIGHT

PROBLEM = Problem(
    GaussianMixture([[0.3, -0.5]], [[[1.6, 0.7], [0.7, 0.5]]]),
    QuadraticReward([[0.8, 0.1], [0.1, -0.2]], [0.8, -0.6]),
    beta=1.0,
    steps=50,
)
ESTIMATORS: dict[str, Estimator] = {
    "adjoint": Adjoint(),
    "adjoint, stride 5": Adjoint(stride=5),
    "∇-TD(0.9), exact flow score": TemporalDifference(td_lambda=0.9, gamma=0.0),
    "5-step, exact flow score": NStep(n=5, gamma=0.0),
    "forward-looking, gamma = 1": ForwardLooking(gamma="one", predictor="reference"),
    "forward-looking, gamma = alpha_bar": ForwardLooking(predictor="reference"),
    "terminal, sqrt(alpha_bar)": Terminal(),
    "terminal, sigma": Terminal(scale="sigma"),
}


class ExactValueGradient(nn.Module):
    """grad V by timestep, of flat standardised states: the tilt's score less the prior's.

    As a policy's network it is the exact policy.
    """

    def __init__(self, model: MixtureModel) -> None:
        super().__init__()
        target = PROBLEM.target
        assert isinstance(target, GaussianMixture)
        means = (target.means - model.center) / model.scale
        self.tilt = GaussianMixture(means, target.covariances / model.scale**2, target.weights)
        self.prior = model.standard

    def forward(self, x: Tensor, timestep: Tensor, beside: Tensor | None = None) -> Tensor:
        alpha_bar = ALPHA_BAR.to(x)[timestep]
        return self.tilt.score(x, alpha_bar) - self.prior.score(x, alpha_bar)


class ExactFlow(VectorFlowScore):
    """The exact value gradient as flow score."""

    def __init__(self, exact: ExactValueGradient) -> None:
        super().__init__(PROBLEM.prior.dim, 1, 0, PassCounter())
        self.network = exact


def bias(estimate: Tensor, exact: Tensor, x: Tensor) -> float:
    """Root mean square of the linear fit of the error, over that of grad V."""
    design = torch.cat([torch.ones(len(x), 1), x], 1).double()
    error = (estimate - exact).double()
    fitted = design @ torch.linalg.lstsq(design, error).solution
    return (fitted.square().mean() / exact.double().square().mean()).sqrt().item()


Biases = dict[str, dict[int, float]]
"""By estimator, then by k of the state."""


def measure(trajectories: int, seed: int) -> Biases:
    """Every estimator on the same trajectories of the exact policy."""
    model = MixtureModel(PROBLEM.prior, PROBLEM.process, nn.Identity(), PassCounter())
    exact = ExactValueGradient(model)
    model.network = exact
    steps = torch.arange(1, PROBLEM.steps + 1).expand(trajectories, -1)
    prompts, noise = [""] * trajectories, torch.Generator().manual_seed(seed)
    condition = model.condition(prompts)
    rollout = model.sample(prompts, noise, keep=steps, keep_states=True)
    flow = ExactFlow(exact)
    networks = Networks(model, PROBLEM.named_reward(), flow, flow)
    path = Trajectories(rollout.x0, rollout.states, condition, prompts, rollout.transitions)
    return {
        name: dict(_biases(estimator, path, networks, exact))
        for name, estimator in ESTIMATORS.items()
    }


def _biases(
    estimator: Estimator, path: Trajectories, networks: Networks, exact: ExactValueGradient
) -> Iterator[tuple[int, float]]:
    """The level k - 1 of a transition's estimate, and its bias there."""
    # A stride jumps over levels that nobody asks for: then one level is asked for at a time.
    strided = isinstance(estimator, Adjoint) and estimator.stride > 1
    levels = range(2, PROBLEM.steps + 1, 4 if strided else 1)
    whole = None if strided else estimator.estimate(path, networks, PROBLEM.beta).target
    for k in levels:
        rows = path.transitions.k == k
        t = path.transitions[rows]
        if whole is None:
            part = replace(path, transitions=t)
            estimate = estimator.estimate(part, networks, PROBLEM.beta).target
        else:
            estimate = whole[rows]
        x = t.x_next.flatten(1)
        timestep = PROBLEM.process.timestep[k - 1].expand(len(x))
        yield k - 1, bias(estimate.flatten(1), exact(x, timestep), x)


def draw(found: Biases, path: Path) -> None:
    figure = Figure(figsize=(7.2, 3.8), dpi=180, layout="constrained")
    axes = figure.add_subplot()
    colours = [*LIGHT.series, "#c2405b", "#4a4f57", "#5aa9a0"]
    for (name, values), colour in zip(found.items(), colours, strict=False):
        percent = [100 * value for value in values.values()]
        axes.plot(list(values), percent, label=name, color=colour, linewidth=1.6)
    axes.set_yscale("log")
    axes.set_ylim(0.1, 300)
    axes.set_xlabel("k of the state (0 is clean)")
    axes.set_ylabel("bias, % of grad V")
    axes.grid(color=LIGHT.line, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=4_000)
    parser.add_argument("--out", type=Path, default=Path("docs/images/estimator_bias.png"))
    given = parser.parse_args()
    found = measure(given.trajectories, seed=0)
    shown = (1, 5, 13, 25, 37, 45)
    print("| estimator | " + " | ".join(f"k = {k}" for k in shown) + " |")
    print("|---" * (len(shown) + 1) + "|")
    for name, values in found.items():
        print(f"| {name} | " + " | ".join(f"{100 * values[k]:.1f} %" for k in shown) + " |")
    draw(found, given.out)


if __name__ == "__main__":
    main()
