"""The settings of residual ∇-DB: what each is, what goes with what, and what is left to a run."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field

from nablaflow.diffusion import Step, ValueStep, check_step, value_step
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators import Gamma, Weighting, check_gamma, check_gamma_counts
from nablaflow.methods.contract import (
    Method,
    StepwiseMethod,
    check_output_regularization,
    check_residuals,
)


class ResidualSettings(StepwiseMethod, abc.ABC):
    """See docs/methods/residual_nabla_db.md; its objective is `ResidualNablaDB.losses`."""

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

    @property
    def aims_at_tilt(self) -> bool:
        return self.prior_strength == 1.0

    @property
    def keeps_shape_beyond(self) -> bool:
        """With a fitted value, as docs/benchmarks.md measures; with the forward-looking one not."""
        return self.value == "contrastive"

    def settled(self, *, calibrated: bool) -> ResidualSettings:
        if self.value != "auto":
            return self
        fits = calibrated and not any(self._against_a_fit())
        return self.model_copy(update={"value": "contrastive" if fits else "forward-looking"})

    def settled_as(self, begun: Method) -> ResidualSettings:
        if self.value != "auto" or not isinstance(begun, ResidualSettings):
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
