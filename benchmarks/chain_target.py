"""What the tilt asks of each step of the sampler, beside what the forward-looking reward claims.

    python benchmarks/chain_target.py warmth preference hue

From each of some states x_k of the reference many trajectories go on to x_0 by the reference. With
the weights w of the tilt among those of one state, sum of w = 1,

    E*[x_0 | x_k] - E_ref[x_0 | x_k]  =  sum (w - 1 / n) x_0

is how far the tilt moves what x_k leads to: it takes no gradient and no network. By the exact step
the forward-looking reward claims c_k / B_k grad beta r(x0_hat(x_k)) for the same shift, B_k being
the slope of the kernel's mean in x0_hat. Printed by k, written to benchmarks/chain_target.json:

    open      1 less the effective share of the weights: what x_k leaves to decide
    truth     length of the former, claim: of the latter, both in kernel deviations sigma_k / B_k
    slope     of the truth on the claim: what the claim would have to be multiplied with
    cosine    between the two

as root mean squares, or means of products, over states. Length and cosine of the truth are freed of
the noise of its samples by products of two halves; one standard error, by leaving out states.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from error_budget import CASES, Figures, prepared
from torch import Tensor

from nablaflow.diffusion import kernel_mean, value_step
from nablaflow.diffusion.kernels import mean_per_x0
from nablaflow.estimators import Networks
from nablaflow.estimators.reference import reference_step, reward_gradient, vector_jacobian
from nablaflow.models import DiffusionModel

ROWS = 64  # states at once


@torch.no_grad()
def carried_on(
    model: DiffusionModel, x: Tensor, prompts: list[str], k: int, to: int, noise: torch.Generator
) -> Tensor:
    """States x_to that the reference makes of states x_k."""
    process, parts = model.process, []
    for start in range(0, len(x), ROWS):
        here, condition = x[start : start + ROWS], model.condition(prompts[start : start + ROWS])
        with model.reference():
            for level in range(k, to, -1):
                steps = torch.full((len(here),), level)
                mean = kernel_mean(process, here, model.predict(here, steps, condition), steps)
                here = mean + process.sigma[level] * torch.randn(here.shape, generator=noise)
        parts.append(here)
    return torch.cat(parts)


def claimed(networks: Networks, x: Tensor, prompts: list[str], k: int, beta: float) -> Tensor:
    """The shift of x_0 by the forward-looking reward and the exact step; (state, value)."""
    model, steps = networks.model, torch.full((len(x),), k)
    with reference_step(model, x, steps, steps - 1, model.condition(prompts)) as step:
        x0_hat = step.prediction.x0_hat
        gradient = beta * reward_gradient(networks, x0_hat, prompts)
        pulled = vector_jacobian(x0_hat, step.x, gradient, "the reward's gradient")
    scale = value_step("exact", model.process).scale[k] / mean_per_x0(model.process)[k]
    return scale * pulled.double().flatten(1)


def shifts(x0: Tensor, scores: Tensor) -> Tensor:
    """Weighted mean less plain mean of ``x0`` (state, trajectory, value) for each state."""
    weights = torch.softmax(scores, 1)
    return (weights[:, :, None] * x0).sum(1) - x0.mean(1)


def compared(x0: Tensor, scores: Tensor, claim: Tensor, unit: float) -> Figures:
    """The figures of one step, each with its error."""
    whole = (shifts(x0, scores) * claim).sum(1)
    first, second = (shifts(x0[:, half::2], scores[:, half::2]) for half in (0, 1))
    products = torch.stack([whole, claim.square().sum(1), (first * second).sum(1)], 1)
    rows = torch.arange(len(products))
    found: Figures = {
        "open": 1.0 - (1.0 / torch.softmax(scores, 1).square().sum(1)).mean().item() / x0.shape[1]
    }
    figures: dict[str, Callable[[Tensor], Tensor]] = {
        "truth": lambda p: p[2].clamp_min(0).sqrt() / unit,
        "claim": lambda p: p[1].sqrt() / unit,
        "slope": lambda p: p[0] / p[1],
        "cosine": lambda p: p[0] / (p[1] * p[2].clamp_min(1e-12)).sqrt(),
    }
    for name, figure in figures.items():
        left = torch.stack([figure(products[rows != row].mean(0)) for row in rows])
        error = ((len(rows) - 1) * (left - left.mean()).square().mean()).sqrt()
        found[name] = [figure(products.mean(0)).item(), error.item()]
    return found


def by_step(cases: list[str], states: int, trajectories: int, seed: int) -> Figures:
    """Of each case, from the same trajectories: the cases have one model."""
    parts = {case: prepared(case, 0, 1) for case in cases}
    networks = {case: Networks(part.model, part.reward) for case, part in parts.items()}
    first = parts[cases[0]]
    model, noise = first.model, torch.Generator().manual_seed(seed)
    prompts = [first.evaluated[row % len(first.evaluated)] for row in range(states)]
    many = [prompt for prompt in prompts for _ in range(trajectories)]
    x = torch.randn((states, *model.state_shape), generator=noise)
    found: Figures = {case: {} for case in cases}
    for k in range(model.process.steps, 0, -1):
        x0 = carried_on(model, x.repeat_interleave(trajectories, 0), many, k, 0, noise)
        unit = (model.process.sigma[k] / mean_per_x0(model.process)[k]).item()
        for case, network in networks.items():
            beta = parts[case].config.method.beta
            with torch.no_grad():
                pieces = zip(x0.split(ROWS), _split(many), strict=True)
                scores = [network.reward(model.decode(part), texts) for part, texts in pieces]
            weighed = beta * torch.cat(scores).double().reshape(states, trajectories)
            claim = claimed(network, x, prompts, k, beta)
            ends = x0.double().flatten(1).reshape(states, trajectories, -1)
            found[case][k] = compared(ends, weighed, claim, unit)
            show(case, k, found[case][k])
        x = carried_on(model, x, prompts, k, k - 1, noise)
    return found


def _split(prompts: list[str]) -> list[list[str]]:
    return [prompts[start : start + ROWS] for start in range(0, len(prompts), ROWS)]


def show(case: str, k: int, figures: Figures) -> None:
    cells = ", ".join(
        f"{name} {value:.2f}"
        if isinstance(value, float)
        else f"{name} {value[0]:.2f} ± {value[1]:.2f}"
        for name, value in figures.items()
    )
    print(f"{case}, k = {k}: {cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    known = [case for case, (changes, _) in CASES.items() if "model" not in changes]
    parser.add_argument("cases", nargs="+", choices=known)
    parser.add_argument("--states", type=int, default=32)
    parser.add_argument("--trajectories", type=int, default=64, help="from each state")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    found = by_step(given.cases, given.states, given.trajectories, given.seed)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
