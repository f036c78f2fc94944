"""The ladder of estimators on one exact problem, over learning rates and weightings.

    python benchmarks/estimators.py --problem ring --updates 600

trains each method with each learning rate, as many at once as there are cores, and prints the
energy distance over its floor. Finished trainings are kept below runs/benchmark-estimators and not
run again. `--methods NAME …` and `--rates RATE …` choose a part of the grid.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from nablaflow import guidance
from nablaflow.exact import LabSettings, evaluate, named_problem
from nablaflow.methods import (
    AdjointMatching,
    Method,
    NablaTD,
    ResidualNablaDB,
    TerminalMatching,
    ValueMatching,
)


def _residual(**settings: Any) -> Callable[[float], Method]:
    """The published form with some of its choices changed."""
    published = ResidualNablaDB.published(1.0, 0.0)
    return lambda beta: published.model_copy(update={"beta": beta, **settings})


def _any(estimator: guidance.Estimator) -> Callable[[float], Method]:
    return lambda beta: ValueMatching(beta=beta, estimator=estimator)


METHODS: dict[str, Callable[[float], Method]] = {
    "published": _residual(),
    "published, sigma2": _residual(weighting="sigma2"),
    "published, sigma2, detached": _residual(weighting="sigma2", forward_flow="detached-ema"),
    "published, sigma2, policy graph": _residual(weighting="sigma2", reverse_policy_graph=True),
    "forward-looking": _any(guidance.ForwardLooking()),
    "forward-looking-flow": _any(guidance.ForwardLookingFlow()),
    "terminal": lambda beta: TerminalMatching(beta=beta),
    "terminal, sigma": lambda beta: TerminalMatching(beta=beta, scale="sigma"),
    "adjoint": lambda beta: AdjointMatching(beta=beta),
    "adjoint, stride 5": lambda beta: AdjointMatching(beta=beta, stride=5),
    "adjoint, max_shift 0.3": lambda beta: AdjointMatching(beta=beta, max_shift=0.3),
    "adjoint, gradients clipped at 0.05": lambda beta: AdjointMatching(beta=beta),
    "adjoint, beta2 0.95": lambda beta: AdjointMatching(beta=beta),
    "nabla-td 0": lambda beta: NablaTD(beta=beta, td_lambda=0.0),
    "nabla-td 0.5": lambda beta: NablaTD(beta=beta, td_lambda=0.5),
    "nabla-td 0.9": lambda beta: NablaTD(beta=beta, td_lambda=0.9),
    "nabla-td 0.9, alpha_bar": lambda beta: NablaTD(beta=beta, weighting="alpha_bar"),
    "5-step": _any(guidance.NStep(n=5)),
}

TRAINING: dict[str, dict[str, Any]] = {
    "adjoint, gradients clipped at 0.05": {"max_grad_norm": 0.05},
    "adjoint, beta2 0.95": {"betas": (0.9, 0.95)},
}
"""Settings of the training that some of them change."""


def run(job: tuple[str, str, float, int, int]) -> dict[str, Any]:
    """One training, on one thread."""
    torch.set_num_threads(1)
    problem, method, rate, updates, seed = job
    chosen = named_problem(problem)
    changed = TRAINING.get(method, {})
    settings = LabSettings(learning_rate=rate, flow_learning_rate=rate, **changed)
    made = METHODS[method](chosen.beta)
    result = evaluate(chosen, made, updates, seed=seed, settings=settings)
    return {**result.row(), "method": method, "learning_rate": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="ring")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 5e-3])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-estimators"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (given.problem, method, rate, given.updates, given.seed)
        for method in given.methods
        for rate in given.rates
    ]
    paths = {job: given.out / ("-".join(map(str, job)).replace(" ", "_") + ".json") for job in jobs}
    missing = [job for job in jobs if not paths[job].is_file()]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for job, row in zip(missing, pool.map(run, missing), strict=True):
            paths[job].write_text(json.dumps(row, indent=2) + "\n")
            print(job, f"{row['energy_distance'] / row['floor']:.1f} times the floor", flush=True)
    print("| method | rate | distance | over floor | weight error | evaluations, M | seconds |")
    print("|---|---|---|---|---|---|---|")
    for job in jobs:
        row = json.loads(paths[job].read_text())
        print(
            f"| {row['method']} | {row['learning_rate']:g} | {row['energy_distance']:.4f} "
            f"| {row['energy_distance'] / row['floor']:.1f} | {row['mode_weight_error']:.3f} "
            f"| {row['network_evaluations'] / 1e6:.0f} | {row['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
