"""Residual ∇-DB: residual detailed balance, differentiated by both ends of a transition.

arXiv 2412.07775, section 3.2. With V_k the log of the residual flow and s the prior's strength,

    forward   d/dx_{k-1} [log p_theta - s log p_ref](x_{k-1} | x_k)  =   grad V_{k-1}(x_{k-1})
    reverse   d/dx_k     [log p_theta - s log p_ref](x_{k-1} | x_k)  =  -grad V_k(x_k)
    terminal  V_0 = beta r

and grad V_k = beta gamma_k grad r(x0_hat(x_k)) + g_phi(x_k, k), where g_phi(x_0, 0) = 0.

With s = 1 the forward condition is (mu_theta - mu_ref)(x_k) = sigma_k^2 grad V_{k-1}(x_{k-1}),
which is right for short steps. The default is what is right at any length, the exact step

    forward   (mu_theta - mu_ref)(x_k)  =  c_k grad V_k(x_k)

(`nablaflow.diffusion.value_step`), with gamma_k = 1 and no flow network, or, in a run that finds
its policy's strength at its end, with gamma_k and g_phi fitted to the reference beforehand
(`nablaflow.estimators.contrastive`): nothing is left to tune but beta.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion import ValueStep, kernel_mean
from nablaflow.diffusion.process import at
from nablaflow.estimators import (
    Networks,
    TrainingBatch,
    gamma_table,
    step_weight,
)
from nablaflow.estimators.bootstrap import target_flow
from nablaflow.methods.contract import (
    Losses,
    flow_scores,
    mean_square,
    noise_prediction_change,
    norm,
    sigma_at,
)
from nablaflow.methods.residual_settings import ResidualSettings
from nablaflow.methods.residuals import Residuals
from nablaflow.typing import Latents


@final
class ResidualNablaDB(ResidualSettings):
    """The exact step by default; every choice of the paper by name, all of them in `published`."""

    name: ClassVar[str] = "residual-nabla-db"
    needs_reward_gradient: ClassVar[bool] = True

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
