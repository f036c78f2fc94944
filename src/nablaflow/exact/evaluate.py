"""Train a method on a problem whose answer is known, and say how far it is from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any

import torch
from torch import nn

from nablaflow.config.arguments import LabArguments, checked
from nablaflow.errors import UserError, show
from nablaflow.exact.contenders import CONTENDERS, DEFAULT, contender
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.distances import (
    energy_distance,
    log_det_covariance,
    mean_distance,
    mode_weight_error,
    sliced_wasserstein,
)
from nablaflow.exact.mixture import Points
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.problem import Problem
from nablaflow.exact.training import LabSettings, sample_policy, train
from nablaflow.methods import Method, Networks, Untrained
from nablaflow.surroundings import surrounded

TARGETS = 3  # exact sets that the samples are compared with; one alone would be a lottery


@dataclass(frozen=True)
class Result:
    """How far a trained policy is from the exact tilt. Distances are in the problem's units.

    Attributes:
        samples: (n, dim), of the trained policy, or of a reference that is not trained.
        steps: K, of the sampler.
        variance, path, sampler: as `Problem.sampling` has them.
        updates: 0 for such a one.
        energy_distance: squared energy distance to the exact tilt, over all pairs; mean over
            `TARGETS` exact sets.
        floor: what it is expected to be between two exact sets of n, 2 E|X - X'| / n.
        discretization: the same distance between the untrained sampler and the exact prior, less
            that pair's own floor: what the steps of the sampler cost without any training.
        sliced_wasserstein: sliced 2-Wasserstein distance to the exact tilt; its floor is a mean
            over pairs of exact sets.
        mode_weight_error: largest absolute error of a component's weight.
        log_det: log determinant of the samples' covariance, nats.
        network_evaluations: of training, or of the samples where there is none; see
            `nablaflow.exact.counter`.
        seconds: of the same.
    """

    problem: str
    method: str
    seed: int
    steps: int
    variance: str
    path: str
    sampler: str
    updates: int
    batch: int
    n: int
    energy_distance: float
    floor: float
    discretization: float
    sliced_wasserstein: float
    sliced_wasserstein_floor: float
    mode_weight_error: float
    reward_mean: float
    target_reward_mean: float
    log_det: float
    target_log_det: float
    network_evaluations: int
    seconds: float
    samples: Points = field(repr=False)

    def row(self) -> dict[str, Any]:
        """All figures as plain data, without the samples."""
        names = [part.name for part in fields(self) if part.name != "samples"]
        return {name: getattr(self, name) for name in names}


@surrounded
def evaluate(
    problem: Problem,
    method: Method | Untrained | str | None = None,
    updates: int = 300,
    batch: int = 256,
    seed: int = 0,
    n: int = 8000,
    *,
    settings: LabSettings | None = None,
    on_update: Callable[[int], None] = lambda update: None,
) -> Result:
    """Train and measure.

    Args:
        method: the project's default, the name of a contender, or an object, whose beta must be the
            problem's.
        batch: trajectories of an update.
        n: samples that are compared.
        settings: of the training; None is what a contender was tuned to, `LabSettings()` for
            methods that are none.
        on_update: called with the updates done.

    Raises:
        UserError: a mistake in any of these.
    """
    asked = _asked(problem, updates=updates, batch=batch, n=n, seed=seed)
    updates, batch, n, seed = asked.updates, asked.batch, asked.n, asked.seed
    label, method, settings = _chosen(problem, method, settings)
    check_batch(method, batch, settings.steps_per_rollout)
    if isinstance(method, Untrained):
        made = _sampled(problem, method, n, seed)
        for update in range(updates):  # whoever counts them is told that none is left
            on_update(update + 1)
        updates = 0
    else:
        made = _trained(problem, method, updates, batch, n, seed, settings, on_update)
    with made.model.reference():
        untrained = sample_policy(made.model, n, seed + 1)
    return Result(
        problem=problem.name,
        method=label,
        seed=seed,
        steps=problem.steps,
        variance=problem.sampling.variance,
        path=problem.sampling.path,
        sampler=problem.sampling.sampler,
        updates=updates,
        batch=batch,
        n=n,
        **_distances(problem, made.samples, untrained, seed),
        mode_weight_error=mode_weight_error(made.samples, problem.modes, problem.mode_weights),
        reward_mean=problem.reward(made.samples).mean().item(),
        target_reward_mean=problem.mean_reward,
        log_det=log_det_covariance(made.samples),
        target_log_det=problem.log_det,
        network_evaluations=made.network_evaluations,
        seconds=made.seconds,
        samples=made.samples,
    )


def _asked(problem: Any, **given: Any) -> LabArguments:
    """The numbers of `evaluate`, once they are some that a study can be made of."""
    if not isinstance(problem, Problem):
        raise UserError(f"problem: {show(problem)} is none; give a nf.exact.Problem")
    asked = checked(LabArguments, **given)
    for name, least in (("updates", 0), ("batch", 1), ("n", 100)):
        if getattr(asked, name) < least:
            raise UserError(f"{name}: {getattr(asked, name)} is too few; use {least} or more")
    return asked


@dataclass(frozen=True)
class _Made:
    """What is compared, and what it cost."""

    model: MixtureModel
    samples: Points
    network_evaluations: int
    seconds: float


def _trained(
    problem: Problem,
    method: Method,
    updates: int,
    batch: int,
    n: int,
    seed: int,
    settings: LabSettings,
    on_update: Callable[[int], None],
) -> _Made:
    started = time.perf_counter()
    trained = train(problem, _kept_in_memory(method), updates, batch, seed, settings, on_update)
    seconds = time.perf_counter() - started
    samples = sample_policy(trained.model, n, seed + 1)
    return _Made(trained.model, samples, trained.network_evaluations, seconds)


def _sampled(problem: Problem, reference: Untrained, n: int, seed: int) -> _Made:
    reference.check(problem.process)
    counter = PassCounter()
    model = MixtureModel(problem.prior, problem.process, nn.Identity(), counter, problem.noise_path)
    networks = Networks(model, problem.named_reward())
    started = time.perf_counter()
    x0 = reference.sample(networks, [""] * n, torch.Generator().manual_seed(seed + 1))
    seconds = time.perf_counter() - started
    return _Made(model, model.points(x0), counter.passes, seconds)


def _distances(problem: Problem, samples: Points, untrained: Points, seed: int) -> dict[str, float]:
    """From the exact tilt with its floor, and of the untrained sampler from the exact prior."""
    n, generator = len(samples), torch.Generator().manual_seed(seed)
    targets = [problem.target.sample(n, generator) for _ in range(TARGETS)]
    prior = problem.prior.sample(n, generator)
    prior_floor = 2.0 * mean_distance(prior, untrained) / n
    directions = torch.Generator().manual_seed(0)
    pairs = zip(targets, targets[1:] + targets[:1], strict=True)
    return {
        "energy_distance": fmean(energy_distance(samples, target) for target in targets),
        "floor": 2.0 * mean_distance(targets[0], targets[1]) / n,
        "discretization": energy_distance(untrained, prior) - prior_floor,
        "sliced_wasserstein": fmean(sliced_wasserstein(samples, y, directions) for y in targets),
        "sliced_wasserstein_floor": fmean(sliced_wasserstein(x, y, directions) for x, y in pairs),
    }


def _kept_in_memory(method: Method) -> Method:
    """Without gradient checkpointing: memory is no concern here, and a pass is counted once."""
    if "checkpointing" not in type(method).model_fields:
        return method
    return method.model_copy(update={"checkpointing": False})


def _tuned(method: Method | Untrained) -> LabSettings:
    """The contender's whose method this is; for others the defaults."""
    beta = getattr(method, "beta", 0.0)
    found = (each for each in CONTENDERS.values() if each.method(beta) == method)
    return next((each.settings for each in found), LabSettings())


def check_batch(method: Method | Untrained, batch: int, steps: int) -> None:
    """Raise `UserError` unless so many trajectories are enough, and divide among the steps."""
    if isinstance(method, Untrained):
        return
    if batch % steps:
        raise UserError(
            f"batch: {batch} trajectories do not divide among the {steps} optimizer steps of a "
            "rollout; choose a multiple"
        )
    if method.needs_group and batch < 2:
        raise UserError(f"batch: {method.name} compares trajectories; use 2 or more")


def _chosen(
    problem: Problem, method: Method | Untrained | str | None, settings: LabSettings | None
) -> tuple[str, Method | Untrained, LabSettings]:
    """The method's label, itself, and how it is trained."""
    if not isinstance(settings, LabSettings | None):
        raise UserError(f"settings: must be nf.exact.LabSettings(…), not {show(settings)}")
    if isinstance(method, Method | Untrained):
        beta = getattr(method, "beta", problem.beta)
        if beta != problem.beta:
            raise UserError(
                f"method: its beta is {beta:g}, the problem's {problem.beta:g}; give both the same"
            )
        return method.name, method, settings or _tuned(method)
    name = DEFAULT if method is None else method
    if not isinstance(name, str):
        raise UserError(f"method: must be a name or a method with its beta, not {show(method)}")
    found = contender(name, "method")
    return name, found.method(problem.beta), settings or found.settings
