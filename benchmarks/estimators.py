"""The ladder of estimators on one exact problem, over a grid of settings.

    python benchmarks/estimators.py --problem ring --updates 600

trains each method with each learning rate, as many at once as there are cores, and prints the
energy distance over its floor. Finished trainings are kept below runs/benchmark-estimators and not
run again. `--methods NAME …` chooses among them; `--rates`, `--weightings` and `--steps` (optimizer
steps of a rollout, each with a fifth of the transitions) are the grid that they are tuned over.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nablaflow import estimators
from nablaflow.estimators import WEIGHTINGS
from nablaflow.exact import LabSettings, evaluate, named_problem
from nablaflow.methods import (
    AdjointMatching,
    Method,
    NablaTD,
    PathWeightedMatching,
    ResidualNablaDB,
    TerminalMatching,
    ValueMatching,
)


def _residual(**settings: Any) -> Callable[[float], Method]:
    """The published form with some of its choices changed."""
    published = ResidualNablaDB.published(1.0, 0.0)
    return lambda beta: published.model_copy(update={"beta": beta, **settings})


def _any(estimator: estimators.Estimator) -> Callable[[float], Method]:
    return lambda beta: ValueMatching(beta=beta, estimator=estimator)


METHODS: dict[str, Callable[[float], Method]] = {
    "published": _residual(),
    "published, sigma2": _residual(weighting="sigma2"),
    "published, sigma2, detached": _residual(weighting="sigma2", forward_flow="detached-ema"),
    "published, sigma2, policy graph": _residual(weighting="sigma2", reverse_policy_graph=True),
    "forward-looking": _any(estimators.ForwardLooking()),
    "forward-looking-flow": _any(estimators.ForwardLookingFlow()),
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
    "5-step": _any(estimators.NStep(n=5)),
    "path-weighted": lambda beta: PathWeightedMatching(beta=beta),
    "path-weighted, no weights": lambda beta: PathWeightedMatching(beta=beta, effective_share=1.0),
    "path-weighted, adjoint alone": lambda beta: PathWeightedMatching(beta=beta, adjoint_above=0.0),
    "path-weighted, denoising alone": lambda beta: PathWeightedMatching(
        beta=beta, adjoint_above=1.0
    ),
}

TRAINING: dict[str, dict[str, Any]] = {
    "adjoint, gradients clipped at 0.05": {"max_grad_norm": 0.05},
    "adjoint, beta2 0.95": {"betas": (0.9, 0.95)},
}
"""Settings of the training that some of them change."""


class Job(NamedTuple):
    """One training."""

    problem: str
    method: str
    rate: float
    weighting: str
    steps: int
    updates: int
    seed: int

    @property
    def file(self) -> str:
        return "-".join(map(str, self)).replace(" ", "_") + ".json"


def run(job: Job) -> dict[str, Any]:
    """On one thread."""
    torch.set_num_threads(1)
    problem = named_problem(job.problem)
    settings = LabSettings(
        learning_rate=job.rate,
        flow_learning_rate=job.rate,
        steps_per_rollout=job.steps,
        transition_fraction=0.2 * job.steps,
        **TRAINING.get(job.method, {}),
    )
    method = METHODS[job.method](problem.beta)
    if job.weighting != "own":
        method = method.model_copy(update={"weighting": job.weighting})
    result = evaluate(problem, method, job.updates, seed=job.seed, settings=settings)
    return {**result.row(), **job._asdict()}


def missing_done(jobs: list[Job], out: Path) -> None:
    """Run what has not been run yet, as many at once as there are cores."""
    missing = [job for job in jobs if not (out / job.file).is_file()]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        running = {pool.submit(run, job): job for job in missing}
        for done in as_completed(running):
            job, row = running[done], done.result()
            (out / job.file).write_text(json.dumps(row, indent=2) + "\n")
            times = row["energy_distance"] / row["floor"]
            print(*job, f"{times:.1f} times the floor", sep=", ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="ring")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 5e-3])
    parser.add_argument("--weightings", nargs="+", default=["own"], choices=["own", *WEIGHTINGS])
    parser.add_argument("--steps", nargs="+", type=int, default=[1])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-estimators"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(given.problem, *choice, given.updates, given.seed)
        for choice in product(given.methods, given.rates, given.weightings, given.steps)
    ]
    missing_done(jobs, given.out)
    print(
        "| method | rate | weighting | steps | distance | over floor | weight error | reward ",
        end="",
    )
    print("| passes, M | seconds |\n" + "|---" * 10 + "|")
    for row in (json.loads((given.out / job.file).read_text()) for job in jobs):
        print(
            f"| {row['method']} | {row['rate']:g} | {row['weighting']} | {row['steps']} "
            f"| {row['energy_distance']:.4f} | {row['energy_distance'] / row['floor']:.1f} "
            f"| {row['mode_weight_error']:.3f} | {row['reward_mean']:.2f} "
            f"| {row['network_evaluations'] / 1e6:.0f} | {row['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
