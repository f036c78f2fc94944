"""Residual ∇-DB: residual detailed balance, differentiated by both ends of a transition.

arXiv 2412.07775, section 3.2. With V_k the log of the residual flow and s the prior's strength,

    forward   d/dx_{k-1} [log p_theta - s log p_ref](x_{k-1} | x_k)  =   grad V_{k-1}(x_{k-1})
    reverse   d/dx_k     [log p_theta - s log p_ref](x_{k-1} | x_k)  =  -grad V_k(x_k)
    terminal  V_0 = beta r

and grad V_k = beta gamma_k grad r(x0_hat(x_k)) + g_phi(x_k, k), where g_phi(x_0, 0) = 0.

With s = 1 the forward condition is (mu_theta - mu_ref)(x_k) = sigma_k^2 grad V_{k-1}(x_{k-1}),
which is right for short steps. The default is what is right at any length, the exact step

    forward   (mu_theta - mu_ref)(x_k)  =  c_k grad V_k(x_k)

(`nablaflow.diffusion.value_step`), with gamma_k = 1 and no flow network: nothing is left to tune
but beta.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import Step, ValueStep, check_step, kernel_mean, value_step
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.estimators import (
    Gamma,
    Networks,
    TrainingBatch,
    Weighting,
    check_gamma,
    check_gamma_counts,
    gamma_table,
    step_weight,
)
from nablaflow.estimators.bootstrap import target_flow
from nablaflow.methods.contract import (
    Losses,
    Method,
    StepwiseMethod,
    check_output_regularization,
    check_residuals,
    flow_scores,
    mean_square,
    noise_prediction_change,
    norm,
    sigma_at,
)
from nablaflow.methods.residuals import Residuals
from nablaflow.typing import Latents


@final
class ResidualNablaDB(StepwiseMethod):
    """The exact step by default; every choice of the paper by name, all of them in `published`."""

    name: ClassVar[str] = "residual-nabla-db"
    needs_reward_gradient: ClassVar[bool] = True

    step: Step = Field(
        default="exact",
        description="how a value gradient moves a kernel's mean: exact at any step length, or by "
        "sigma_k^2 grad V_{k-1} (published)",
    )
    gamma: Gamma = Field(
        default="one",
        description="gamma_k, trust in the forward-looking reward (published: alpha_bar)",
    )
    value: Literal["auto", "forward-looking", "contrastive"] = Field(
        default="auto",
        description="what the value is: the forward-looking reward's, or that mixed with a log "
        "flow, both fitted to samples of the reference before the first update (contrastive); "
        "auto: the latter in a run that ends with training.calibrate, which it needs",
    )
    forward_weight: float = Field(default=1.0, ge=0, description="of the forward residual")
    reverse_weight: float = Field(
        default=0.0,
        ge=0,
        description="of the reverse residual, which trains the flow network; 0: no flow network "
        "(published: 1)",
    )
    terminal_weight: float = Field(default=1.0, ge=0, description="of g_phi(x_0, 0) = 0")
    reverse_policy_graph: bool = Field(
        default=False,
        description="train the policy by the reverse residual too; off, it trains only the flow",
    )
    reverse_last: bool = Field(
        default=True, description="use the reverse residual at k = 1 too (published: no)"
    )
    forward_flow: Literal["attached", "detached-ema"] = Field(
        default="detached-ema",
        description="flow score in the forward target: trained by it (published), or a constant",
    )
    output_regularization: float = Field(
        default=0.0, ge=0, description="weight of the squared change of the noise since the rollout"
    )
    prior_strength: float = Field(
        default=1.0, ge=0, le=1, description="s, multiplies the reference score"
    )
    weighting: Weighting = Field(default="nats", description="of a step's squared residuals")
    forward_looking_predictor: Literal["policy", "reference"] = Field(
        default="reference",
        description="whose x0_hat the forward-looking reward sees (published: policy)",
    )

    @staticmethod
    def published(beta: float, output_regularization: float) -> ResidualNablaDB:
        """The form of the authors' code (see docs/methods/residual_nabla_db.md for deviations)."""
        return ResidualNablaDB(
            beta=beta,
            step="published",
            gamma="alpha_bar",
            forward_looking_predictor="policy",
            output_regularization=output_regularization,
            always_last=True,
            reverse_weight=1.0,
            reverse_last=False,
            forward_flow="attached",
            weighting="constant",
        )

    @property
    def aims_at_tilt(self) -> bool:
        return self.prior_strength == 1.0

    @property
    def keeps_shape_beyond(self) -> bool:
        """With a fitted value, as docs/benchmarks.md measures; with the forward-looking one not."""
        return self.value == "contrastive"

    def settled(self, *, calibrated: bool) -> ResidualNablaDB:
        if self.value != "auto":
            return self
        fits = calibrated and not any(self._against_a_fit())
        return self.model_copy(update={"value": "contrastive" if fits else "forward-looking"})

    def settled_as(self, begun: Method) -> ResidualNablaDB:
        if self.value != "auto" or not isinstance(begun, ResidualNablaDB):
            return self
        older = begun.value == "auto"  # than the choice
        return self.model_copy(update={"value": "forward-looking" if older else begun.value})

    @property
    def uses_flow(self) -> bool:
        """A detached flow score that no reverse residual trains would stay 0."""
        return self.reverse_weight > 0 or self.forward_flow == "attached"

    def value_step(self, process: ReverseProcess) -> ValueStep:
        return value_step(self.step, process)

    @property
    def states_its_target(self) -> bool:
        return self.trains_at_any_state

    @property
    def trains_at_any_state(self) -> bool:
        """By the exact step, without a flow network that learns on the way."""
        fixed = not self.uses_flow and self.output_regularization == 0
        return self.step == "exact" and fixed

    @property
    def needs_log_flow(self) -> bool:
        return self.value == "contrastive"

    @property
    def needs_second_derivatives(self) -> bool:
        return self.reverse_weight > 0 and self.reverse_policy_graph

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        check_output_regularization(self.output_regularization, on_policy)
        check_residuals(self.forward_weight, self.reverse_weight, self.reverse_policy_graph)
        check_gamma(self.gamma, process)
        check_step(self.step, process)
        self._check_flow()
        self._check_reward_counts(process)
        if self.needs_log_flow:
            self._check_contrastive()
        if self.step == "exact" and self.prior_strength != 1.0:
            raise UserError(
                "method.prior_strength: the exact step moves the whole reference; use "
                "method.prior_strength=1, or method.step=published"
            )
        if not flow and self.reverse_weight > 0 and not self.reverse_policy_graph:
            raise UserError(
                "method.reverse_weight: without a flow network the reverse residual trains "
                "nothing; set method.reverse_weight=0, or switch the flow network on"
            )

    def idle(self, *, flow: bool) -> Iterator[tuple[str, str]]:
        if self.reverse_weight == 0:
            yield "reverse_last", "there is no reverse residual; set method.reverse_weight=1"
        if self.forward_weight == 0:
            yield "forward_flow", "there is no forward residual; set method.forward_weight=1"
        if self.gamma == 0:
            yield "forward_looking_predictor", "nothing is looked ahead; set method.gamma=one"
        for name in () if flow or self.needs_log_flow else ("terminal_weight", "forward_flow"):
            yield (
                name,
                "there is no flow network; set method.reverse_weight=1, not flow=null",
            )

    def _check_flow(self) -> None:
        """The reverse condition is that of kernels which sigma_k^2 grad V_{k-1} has moved.

        Along those of the exact step it makes grad V_k J^T (c_k / sigma_k^2) grad V_k, which no
        reward has a part in.
        """
        if self.step != "exact" or not self.uses_flow or self.needs_log_flow:
            return
        name, off = "forward_flow", "detached-ema"
        if self.reverse_weight > 0:
            name, off = "reverse_weight", "0"
        raise UserError(
            f"method.{name}: the flow network learns from kernels that the published step has "
            f"moved; set method.step=published, or method.{name}={off}"
        )

    def _check_reward_counts(self, process: ReverseProcess) -> None:
        """By the published step it counts at x_0 at the least; the flow network's part has none."""
        levels = torch.arange(1, process.steps + 1)
        if self.forward_weight > 0:
            levels = self.value_step(process).level[1:]
        check_gamma_counts(self.gamma, process, levels)

    def _check_contrastive(self) -> None:
        for name, needed in self._against_a_fit():
            raise UserError(
                f"method.{name}: method.value=contrastive needs {needed}; set "
                f"method.{name}={needed}, or method.value=forward-looking"
            )

    def _against_a_fit(self) -> Iterator[tuple[str, Any]]:
        """Settings that it does not go with, and what they would have to be.

        It has gamma's place and the flow network's, and is of the reference at x_k.
        """
        taken = {
            "step": "exact",
            "gamma": "one",
            "forward_looking_predictor": "reference",
            "forward_flow": "detached-ema",
            "reverse_weight": 0.0,
        }
        for name, needed in taken.items():
            if getattr(self, name) != needed:
                yield name, needed

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        step = self.value_step(networks.model.process)
        batch = replace(batch, levels=step.level)
        reversed_ = batch.transitions.k > (0 if self.reverse_last else 1)
        if self.reverse_weight == 0 or not reversed_.any():
            return self._losses(batch, networks, step, reverse=False)
        if reversed_.all():
            return self._losses(batch, networks, step, reverse=True)
        # Without the reverse residual the others cost one backward pass of the policy, and no more.
        rows = [reversed_.nonzero()[:, 0], (~reversed_).nonzero()[:, 0]]
        parts = [
            self._losses(batch[part], networks, step, reverse=reverse)
            for part, reverse in zip(rows, (True, False), strict=True)
        ]
        return Losses.concatenate(parts)[torch.cat(rows).argsort()]

    def _losses(
        self, batch: TrainingBatch, networks: Networks, step: ValueStep, *, reverse: bool
    ) -> Losses:
        """Those of transitions that all have the reverse residual, or none."""
        model, transitions = networks.model, batch.transitions
        weight = step_weight(self.weighting, model.process, transitions.k, step)
        residuals = self._residuals(networks, step)
        reference = residuals.reference(batch, networks, reverse=reverse)
        x = transitions.x.detach().requires_grad_(reverse)
        policy = model.predict(x, transitions.k, batch.condition)
        mean = kernel_mean(model.process, x, policy, transitions.k)
        flow_here, flow_next, flow_target = self._flows(batch, networks)

        value_gradient = residuals.value_gradient(reference, batch, networks)
        target = value_gradient + flow_target
        forward = residuals.forward_left(mean, reference.mean, batch, model.process) - target
        terms = {"forward": self.forward_weight * weight * mean_square(forward)}
        if self.reverse_weight > 0:
            terms["reverse"] = torch.zeros_like(weight)
        if reverse:
            left = residuals.reverse_left(reference, policy, mean, x, batch, networks)
            found = left + flow_here
            terms["reverse"] = self.reverse_weight * weight * mean_square(found)
        if networks.flow is not None:
            last = (transitions.k == 1).float()
            terms["terminal"] = self.terminal_weight * last * weight * mean_square(flow_next)
        if self.output_regularization > 0:
            change = noise_prediction_change(policy, transitions)
            terms["output_regularization"] = self.output_regularization * change
        scale, shift = at(step.scale, transitions.k, transitions.x), mean - reference.mean
        metrics = {
            "asked_nats": _nats(scale, target),
            "unfollowed_nats": _nats(scale, forward),
            "value_gradient_norm": norm(value_gradient),
            "flow_score_norm": norm(flow_target),
            "mean_shift": norm(shift),
            "kl": 0.5 * norm(shift / sigma_at(model.process, transitions)).square(),
        }
        return Losses(terms, metrics)

    def _flows(self, batch: TrainingBatch, networks: Networks) -> tuple[Latents, Latents, Latents]:
        """g_phi at x_k, at x_{k-1}, and as the forward target uses it: 0 at the end."""
        transitions, process = batch.transitions, networks.model.process
        if networks.flow is None:
            nothing = torch.zeros_like(transitions.x)
            if not self.needs_log_flow:
                return nothing, nothing, nothing
            fit, model = networks.fitted_value, networks.model
            return nothing, nothing, fit.score(model, transitions.x, transitions.k, batch.condition)
        here, following = flow_scores(networks.flow, process, batch)
        used = following
        if self.forward_flow == "detached-ema":
            used = target_flow(networks, transitions.x_next, transitions.k - 1, batch.condition)
        last = (transitions.k == 1).reshape(-1, *[1] * (here.ndim - 1))
        return here, following, torch.where(last, 0.0, used)

    def _residuals(self, networks: Networks, step: ValueStep) -> Residuals:
        process = networks.model.process
        if self.needs_log_flow:
            gamma = networks.fitted_value.gamma
        else:
            gamma = gamma_table(self.gamma, process, networks.measured_gamma)
        return Residuals(
            step=step,
            strength=self.beta * gamma,
            predictor=self.forward_looking_predictor,
            prior_strength=self.prior_strength,
            policy_graph=self.reverse_policy_graph,
        )


def _nats(scale: Tensor, value_gradient: Latents) -> Float[Tensor, "batch"]:
    """KL divergence between kernels of variance ``scale`` whose means it moves apart."""
    return 0.5 * (scale * value_gradient.detach().square()).flatten(1).sum(1)
