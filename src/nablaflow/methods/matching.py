"""Value-gradient matching: the kernel's shift over its scale follows an estimate of grad V.

The forward condition of residual ∇-DB (arXiv 2412.07775, section 3.2) is a regression,

    loss = w_k | (mu_theta - mu_ref)(x_k) / m_k  -  T |^2,

whose target T is an estimate of grad V_{k-1}(x_{k-1}) with m_k = sigma_k^2, or of grad V_k(x_k)
with m_k = c_k (see `nablaflow.diffusion.value_step`), constant for the loss. Methods of this form
differ in the estimator only; where it uses a flow network, that is regressed on what the estimator
says it should be, with the same weight.
"""

from __future__ import annotations

import abc
import re
from typing import ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import Step, ValueStep, check_step, kernel_mean, value_step
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.estimators import (
    AnyEstimator,
    Estimator,
    Networks,
    TrainingBatch,
    Weighting,
    by_band,
    step_weight,
)
from nablaflow.methods.contract import (
    Losses,
    StepwiseMethod,
    check_output_regularization,
    mean_square,
    noise_prediction_change,
    norm,
    sigma_at,
)
from nablaflow.typing import Latents


class Matching(StepwiseMethod, abc.ABC):
    """What all methods of this form share; a subclass names its estimator."""

    needs_reward_gradient: ClassVar[bool] = True

    step: Step = Field(
        default="published",
        description="how a value gradient moves a kernel's mean: sigma_k^2 grad V_{k-1}, or exact",
    )
    weighting: Weighting = Field(default="nats", description="of a step's squared residual")
    max_shift: float | None = Field(
        default=None,
        gt=0,
        description="most that a target may move a kernel's mean, in its standard deviations (root "
        "mean square over the state); larger targets are scaled down",
    )
    output_regularization: float = Field(
        default=0.0, ge=0, description="weight of the squared change of the noise since the rollout"
    )

    @abc.abstractmethod
    def value_estimator(self) -> Estimator: ...

    @property
    def aims_at_tilt(self) -> bool:
        return True

    @property
    def weighs_by_reward(self) -> bool:
        """Whether the reward counts in the trajectories' weights, whatever the estimator is."""
        return False

    @property
    def uses_flow(self) -> bool:
        return self.value_estimator().uses_flow

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        check_output_regularization(self.output_regularization, on_policy)
        check_step(self.step, process)
        estimator = self.value_estimator()
        estimator.check(process)
        if self.step == "exact" and estimator.reads_kernels:
            raise UserError(
                "method.step: this estimator's flow network learns from kernels that the published "
                "step has moved; set method.step=published, or another method.estimator"
            )
        if not self.weighs_by_reward:
            estimator.check_reward_counts(process, self.value_step(process).level[1:])
        if estimator.uses_flow and not flow:
            raise UserError(
                f"flow: {self.name} bootstraps from a flow network; switch it on, or use "
                "adjoint-matching"
            )

    def value_step(self, process: ReverseProcess) -> ValueStep:
        return value_step(self.step, process)

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        assert batch.estimate is not None
        model, t = networks.model, batch.transitions
        sigma = sigma_at(model.process, t)
        with model.reference(), torch.no_grad():
            reference = model.predict(t.x, t.k, batch.condition)
        policy = model.predict(t.x, t.k, batch.condition)
        shift = kernel_mean(model.process, t.x, policy, t.k) - kernel_mean(
            model.process, t.x, reference, t.k
        )
        step = self.value_step(model.process)
        scale = at(step.scale, t.k, t.x)
        target = self._bounded(batch.estimate.target, scale, sigma)
        weight = step_weight(self.weighting, model.process, t.k, step)
        if batch.credit is not None:
            weight = weight * batch.credit
        terms = {"forward": weight * mean_square(shift / scale - target)}
        if batch.estimate.flow is not None:
            terms["flow"] = weight * mean_square(_flow(batch, networks) - batch.estimate.flow)
        if self.output_regularization > 0:
            change = noise_prediction_change(policy, t)
            terms["output_regularization"] = self.output_regularization * change
        metrics = {
            "value_gradient_norm": norm(target),
            "mean_shift": norm(shift),
            "kl": 0.5 * norm(shift / sigma).square(),
            **by_band("strength", weight * mean_square(target), model.process, t.k),
        }
        if batch.credit is not None:
            metrics["weight_square"] = batch.credit.square()
        return Losses(terms, metrics)

    def _bounded(self, target: Latents, scale: Tensor, sigma: Tensor) -> Latents:
        """The target, scaled down where it asks for more than `max_shift`."""
        if self.max_shift is None:
            return target
        asked = mean_square(scale / sigma * target).sqrt().reshape(sigma.shape)
        return target * (self.max_shift / asked.clamp_min(1e-12)).clamp_max(1.0)


def _flow(batch: TrainingBatch, networks: Networks) -> Latents:
    assert networks.flow is not None
    t = batch.transitions
    timestep = networks.model.process.timestep.to(t.k.device)[t.k]
    return networks.flow(t.x, timestep, batch.condition)


@final
class ValueMatching(Matching):
    """Any estimator, by name; the methods that have a name of their own are shorter."""

    name: ClassVar[str] = "value-matching"

    estimator: AnyEstimator = Field(description="the estimate of the value gradient")

    def value_estimator(self) -> Estimator:
        return self.estimator

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        try:
            super().check(process, flow=flow, on_policy=on_policy)
        except UserError as error:  # other methods have the estimator's settings as their own
            own = [name for name in type(self.estimator).model_fields if name != "name"]
            line = re.sub(rf"\bmethod\.({'|'.join(own)})\b", r"method.estimator.\1", str(error))
            raise UserError(line) from error
