"""Residual detailed balance itself, not its gradients: what DAG-DB and DAG-KL share.

arXiv 2406.00633, in the residual form. With V_k the log of the residual flow, at each transition

    log p_theta(x_{k-1} | x_k) - log p_ref(x_{k-1} | x_k)  =  V_{k-1}(x_{k-1}) - V_k(x_k)
    V_k(x_k) = beta gamma_k r(x0_hat(x_k)) + f_phi(x_k, k),     V_0(x_0) = beta r(x_0)

and f_phi is the mean over the values of the flow network's output. The reward is only called, on
images of x0_hat that are as blurred as x_k is noisy; no gradient goes through it or x0_hat.

Log densities are sums over a state's values, in nats. The authors' code has their means, by which
its beta counts as many times as there are values.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field

from nablaflow.diffusion import Prediction, kernel_mean
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators import Gamma, Networks, TrainingBatch, check_gamma, gamma_table
from nablaflow.estimators.bootstrap import target_flow
from nablaflow.estimators.reference import reward_of
from nablaflow.methods.contract import (
    StepwiseMethod,
    check_output_regularization,
    flow_scores,
    norm,
    sigma_at,
)
from nablaflow.methods.likelihood import log_ratio
from nablaflow.typing import Batch, Latents, Steps


@dataclass(frozen=True)
class Balance:
    """Both sides of the condition at a batch of transitions.

    Attributes:
        log_ratio: log p_theta - log p_ref, differentiable by the policy.
        value: V_k(x_k), and ``value_next`` V_{k-1}(x_{k-1}), differentiable by the flow network.
        metrics: figures for the log.
    """

    policy: Prediction
    policy_mean: Latents
    log_ratio: Batch
    value: Batch
    value_next: Batch
    metrics: dict[str, Batch]


class DetailedBalance(StepwiseMethod, abc.ABC):
    """The condition's settings; a subclass says what is trained by its residual."""

    needs_reward_gradient: ClassVar[bool] = False

    gamma: Gamma = Field(
        default="one", description="gamma_k, trust in the forward-looking reward (published: one)"
    )
    forward_looking_predictor: Literal["policy", "reference"] = Field(
        default="reference", description="whose x0_hat the reward sees (published: policy)"
    )
    next_flow: Literal["attached", "detached-ema"] = Field(
        default="detached-ema",
        description="f_phi at x_{k-1}: trained towards x_k's (published), or a constant",
    )
    output_regularization: float = Field(
        default=0.0, ge=0, description="weight of the squared change of the noise since the rollout"
    )

    @property
    def aims_at_tilt(self) -> bool:
        return True

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        check_output_regularization(self.output_regularization, on_policy)
        check_gamma(self.gamma, process)
        if not flow:
            raise UserError(
                f"flow: {self.name} learns log F with the flow network; switch it on, or use ddpo"
            )

    def idle(self, *, flow: bool) -> Iterator[tuple[str, str]]:
        if self.gamma == 0:
            yield "forward_looking_predictor", "nothing is looked ahead; set method.gamma=one"

    def balance(self, batch: TrainingBatch, networks: Networks) -> Balance:
        model, t = networks.model, batch.transitions
        with model.reference(), torch.no_grad():
            reference = model.predict(t.x, t.k, batch.condition)
            reference_mean = kernel_mean(model.process, t.x, reference, t.k)
        policy = model.predict(t.x, t.k, batch.condition)
        mean = kernel_mean(model.process, t.x, policy, t.k)
        sigma = sigma_at(model.process, t)
        ratio = log_ratio(t.x_next, mean, reference_mean, sigma).flatten(1).sum(1)
        looking = policy if self.forward_looking_predictor == "policy" else reference
        ahead = self._looked(looking.x0_hat.detach(), t.k, batch, networks)
        ahead_next = self._looked(self._x0_hat_next(batch, networks), t.k - 1, batch, networks)
        flow, flow_next = self._flows(batch, networks)
        value, value_next = ahead + flow, ahead_next + flow_next
        shift = mean - reference_mean
        metrics = {
            "residual_size": (ratio + value - value_next).detach().abs(),
            "log_flow": value.detach(),
            "mean_shift": norm(shift),
            "kl": 0.5 * norm(shift / sigma).square(),
        }
        return Balance(policy, mean, ratio, value, value_next, metrics)

    @torch.no_grad()
    def _looked(self, x0_hat: Latents, k: Steps, batch: TrainingBatch, networks: Networks) -> Batch:
        """Beta gamma_k r(x0_hat)."""
        gamma = gamma_table(self.gamma, networks.model.process, networks.measured_gamma)
        return self.beta * gamma.to(k.device)[k] * reward_of(networks, x0_hat, batch.prompts)

    @torch.no_grad()
    def _x0_hat_next(self, batch: TrainingBatch, networks: Networks) -> Latents:
        """At x_{k-1}; the state itself where that is x_0."""
        model, x, k = networks.model, batch.transitions.x_next, batch.transitions.k - 1
        by_reference = self.forward_looking_predictor == "reference"
        with model.reference() if by_reference else nullcontext():
            x0_hat = model.predict(x, k, batch.condition).x0_hat
        return torch.where((k == 0).reshape(-1, *[1] * (x.ndim - 1)), x, x0_hat)

    def _flows(self, batch: TrainingBatch, networks: Networks) -> tuple[Batch, Batch]:
        """f_phi at x_k and at x_{k-1}: 0 at the end."""
        assert networks.flow is not None
        process, t = networks.model.process, batch.transitions
        if self.next_flow == "attached":
            here, following = flow_scores(networks.flow, process, batch)
        else:
            timestep = process.timestep.to(t.k.device)[t.k]
            here = networks.flow(t.x, timestep, batch.condition)
            following = target_flow(networks, t.x_next, t.k - 1, batch.condition)
        after = following.flatten(1).mean(1)
        return here.flatten(1).mean(1), torch.where(batch.transitions.k == 1, 0.0, after)
