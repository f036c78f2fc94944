"""Align a mixture: a loop around the trainer's own update, without files and processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from pydantic import Field

from nablaflow.config.settings import OptimizerSettings
from nablaflow.diffusion import adds_noise, strata_count
from nablaflow.errors import TrainingStopped
from nablaflow.estimators import (
    LogFlowFit,
    ReferenceSamples,
    TrainingBatch,
    draw_reference,
    fit_log_flow,
    measure_gamma,
)
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.mixture import Points
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.networks import ValueNetwork, VectorFlowScore, VectorLogFlow
from nablaflow.exact.problem import Problem
from nablaflow.methods import Method, Networks
from nablaflow.methods.contract import check_noise
from nablaflow.models import LogFlow
from nablaflow.rewards import NamedReward
from nablaflow.seeds import stream
from nablaflow.settings import Settings
from nablaflow.training.optimization import (
    Average,
    Schedule,
    add_gradients,
    clip_gradients,
    make_optimizer,
)
from nablaflow.training.update import Update

GAMMA_TRAJECTORIES = 1024
VALUE_SAMPLES = 8192


class LabSettings(Settings):
    """How a policy is trained in the laboratory; the same for every method unless tuned."""

    learning_rate: float = Field(default=2e-3, gt=0, description="of the policy")
    flow_learning_rate: float = Field(default=2e-3, gt=0, description="of the flow network")
    schedule: Literal["constant", "cosine"] = Field(default="cosine", description="of both")
    warmup: int = Field(default=20, ge=0, description="updates over which the rates rise")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's decays")
    max_grad_norm: float | None = Field(
        default=None, gt=0, description="of each network's gradient; null does not clip"
    )
    transition_fraction: float = Field(default=0.2, gt=0, le=1, description="share trained")
    steps_per_rollout: int = Field(
        default=1, ge=1, description="optimizer steps, each on its own trajectories"
    )
    policy_ema: float = Field(default=0.99, ge=0, lt=1, description="of the policy that samples")
    flow_ema: float = Field(default=0.95, ge=0, lt=1, description="of the flow in targets")
    width: int = Field(default=64, ge=1, description="of the networks")
    layers: int = Field(default=2, ge=0, description="hidden layers of the networks")

    def optimizer(self) -> OptimizerSettings:
        return OptimizerSettings(
            learning_rate=self.learning_rate,
            flow_learning_rate=self.flow_learning_rate,
            betas=self.betas,
            weight_decay=0.0,
            flow_weight_decay=0.0,
            schedule=self.schedule,
            warmup=self.warmup,
        )


@dataclass(frozen=True)
class Trained:
    """A trained policy.

    Attributes:
        network_evaluations: passes of one state, forward and backward, see `PassCounter`.
        records: logged figures, one mapping an update.
    """

    model: MixtureModel
    network_evaluations: int
    records: list[dict[str, float]]


def before_training(seed: int, trajectories: int) -> list[int]:
    """Seeds of what a method is shown of the reference beforehand, others for each training.

    Of all figures of such a method their draw is the largest part of the error.
    """
    return [stream("reference of the laboratory", seed, row) for row in range(trajectories)]


def _fitted(
    network: LogFlow, model: MixtureModel, reward: NamedReward, beta: float, seed: int
) -> LogFlowFit:
    """The value that a method has fitted to the reference before the first update."""
    n, prompts = VALUE_SAMPLES, [""] * VALUE_SAMPLES
    x0, rewards = draw_reference(model, reward, prompts, before_training(seed, n), n)
    samples = ReferenceSamples.of(model, x0, rewards, prompts)
    generator = torch.Generator().manual_seed(seed)
    return fit_log_flow(network, model, reward, beta, samples, generator)


class LabTrainer:
    """One problem, one method; `step` is one update."""

    def __init__(self, problem: Problem, method: Method, settings: LabSettings, seed: int) -> None:
        self.problem, self.method, self.settings = problem, method, settings
        on_policy = settings.steps_per_rollout == 1
        check_noise(method, noisy=adds_noise(problem.process))
        method.check(problem.process, flow=method.uses_flow, on_policy=on_policy)
        self.generator = torch.Generator().manual_seed(seed)
        self.counter = PassCounter()
        dim, sizes = problem.prior.dim, (settings.width, settings.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # layers draw their weights from the global state
            path = problem.noise_path
            policy = ValueNetwork(dim, *sizes, inputs=dim, path=path)
            flows = [VectorFlowScore(dim, *sizes, self.counter, path) for _ in range(2)]
            log_flow = VectorLogFlow(dim, *sizes, self.counter)
        flow, target = flows if method.uses_flow else (None, None)
        self.model = MixtureModel(problem.prior, problem.process, policy, self.counter, path)
        self.average = Average(policy, settings.policy_ema)
        self._averages = [self.average]
        if flow is not None and target is not None:
            target.requires_grad_(False).load_state_dict(flow.state_dict())
            self._averages.append(Average(flow, settings.flow_ema, into=target))
        reward = problem.named_reward()
        gamma = None
        if method.needs_measured_gamma:
            seeds = before_training(seed, GAMMA_TRAJECTORIES)
            gamma = measure_gamma(self.model, reward, [""] * len(seeds), seeds, batch=len(seeds))
        fit = None
        if method.needs_log_flow:
            fit = _fitted(log_flow, self.model, reward, method.beta, seed)
        self.core = Update(method, Networks(self.model, reward, flow, target, gamma, log_flow=fit))
        self.networks = self.core.networks
        self.optimizer = make_optimizer(settings.optimizer(), self.core.objective)
        self._schedule = Schedule(settings.optimizer(), self.optimizer)

    def step(self, update: int, updates: int, batch: int) -> dict[str, float]:
        """Sample, estimate, train once; the figures are means over the batch."""
        self._schedule.set_rates(update, updates)
        parts = self._rows(batch).split(self.settings.steps_per_rollout)
        records = [self._optimizer_step(part) for part in parts]
        self.core.end(update + 1)
        return {name: fmean(record[name] for record in records) for name in records[0]}

    def _rows(self, batch: int) -> TrainingBatch:
        strata = strata_count(self.problem.steps, self.settings.transition_fraction)
        keep = self.method.draw(batch, self.problem.process, strata, self.generator)
        rollout = self.core.rollout([""] * batch, self.generator, keep)
        return self.core.batch(rollout, self.core.credits(rollout))

    def _optimizer_step(self, rows: TrainingBatch) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        figures = add_gradients(self.core.objective, rows)
        if self.settings.max_grad_norm is not None:
            clip_gradients(self.optimizer, self.settings.max_grad_norm)
        self.optimizer.step()
        for average in self._averages:
            average.update()
        return {name: value.item() / len(rows) for name, value in figures.items()}


def train(
    problem: Problem,
    method: Method,
    updates: int,
    batch: int,
    seed: int,
    settings: LabSettings,
    on_update: Callable[[int], None],
) -> Trained:
    """Train a policy; the model that is returned samples with the average of its weights.

    Raises:
        TrainingStopped: the policy diverged.
    """
    trainer = LabTrainer(problem, method, settings, seed)
    records = []
    for update in range(updates):
        try:
            records.append(trainer.step(update, updates, batch))
        except FloatingPointError as error:
            raise TrainingStopped(
                f"{problem.name}, {method.name}, seed {seed}: update {update + 1}: {error} is not "
                "finite; lower the learning rate of the training or the method's beta"
            ) from error
        on_update(update + 1)
    evaluations = trainer.counter.passes
    with torch.no_grad():
        for name, parameter in trainer.model.network.named_parameters():
            parameter.copy_(trainer.average.values[name])
    return Trained(trainer.model, evaluations, records)


@torch.no_grad()
def sample_policy(model: MixtureModel, n: int, seed: int) -> Points:
    """``n`` points of the policy, or inside ``model.reference()`` of the untrained sampler."""
    return model.points(model.sample([""] * n, torch.Generator().manual_seed(seed)).x0)
