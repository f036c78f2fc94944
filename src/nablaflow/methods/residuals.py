"""What residual ∇-DB sets against each other: the reference's pass at x_k, and the two residuals.

The conditions themselves are in `nablaflow.methods.residual_nabla_db`; here is how each side of
them is computed for a batch, with as few passes as there can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion import ValueStep, kernel_mean, score_of_next, score_of_state
from nablaflow.diffusion.prediction import Prediction
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.estimators import Networks, TrainingBatch, look_ahead
from nablaflow.estimators.reference import reward_gradient, sum_of_products
from nablaflow.methods.contract import sigma_at
from nablaflow.typing import Latents


@final
@dataclass(frozen=True)
class ReferencePass:
    """What the reference says at the batch's states, all of it constant: its graph is gone.

    Attributes:
        mean: of its kernel.
        value: the forward-looking gradient at x_k, where it is the forward target and by the
            reference.
        reverse: its part of the reverse residual, where there is one: - s d/dx_k log p_ref, and the
            forward-looking gradient at x_k where that is by the reference.
    """

    mean: Latents
    value: Latents | None
    reverse: Latents | None


@final
@dataclass(frozen=True, kw_only=True)
class Residuals:
    """The sides of both conditions, by the choices of a method.

    Attributes:
        step: how a value gradient moves a kernel's mean.
        strength: beta gamma_k by k.
        predictor: whose x0_hat the forward-looking reward sees.
        prior_strength: s.
        policy_graph: whether the reverse residual can be differentiated by the policy's weights.
    """

    step: ValueStep
    strength: Float[Tensor, "levels"]
    predictor: Literal["policy", "reference"]
    prior_strength: float
    policy_graph: bool

    def reference(
        self, batch: TrainingBatch, networks: Networks, *, reverse: bool
    ) -> ReferencePass:
        """One pass of the reference at x_k, with a graph from there where a gradient is needed.

        Args:
            reverse: whether its part of the reverse residual is asked for.
        """
        model, transitions = networks.model, batch.transitions
        here = bool((batch.level == transitions.k).any())
        valued = (reverse or here) and self.predictor == "reference"
        x = transitions.x.detach().requires_grad_(reverse or valued)
        value = backward = None
        # Gradients through the reference are taken inside: a checkpointed layer runs again then.
        with model.reference(), torch.set_grad_enabled(reverse or valued):
            prediction = model.predict(x, transitions.k, batch.condition)
            mean = kernel_mean(model.process, x, prediction, transitions.k)
            ahead = []
            if valued:
                ahead = [(prediction.x0_hat, self._ahead(prediction, batch, networks))]
            if here and valued:
                value = sum_of_products(ahead, x, "the reward's gradient", keep_graph=reverse)
                ahead = []
            if reverse:
                pull = _pull(mean, batch, model.process)
                pairs = [(mean, -self.prior_strength * pull), *ahead]
                backward = sum_of_products(pairs, x, "the reverse residual", keep_graph=False)
        if backward is not None and value is not None:
            backward = backward + value
        return ReferencePass(mean.detach(), value, backward)

    def value_gradient(
        self, reference: ReferencePass, batch: TrainingBatch, networks: Networks
    ) -> Latents:
        """The forward-looking part at `TrainingBatch.state`; exact at x_0, the state itself."""
        value = torch.zeros_like(batch.transitions.x)
        asked = torch.ones_like(batch.level, dtype=torch.bool)
        if reference.value is not None:
            here = batch.level == batch.transitions.k
            value[here], asked = reference.value[here], ~here
        rows = asked.nonzero()[:, 0]
        if len(rows) == 0:
            return value
        part = batch[rows]
        value[rows] = look_ahead(
            networks,
            part.state,
            part.level,
            part.condition,
            part.prompts,
            self.strength,
            self.predictor,
        )
        return value

    def forward_left(
        self, mean: Latents, reference: Latents, batch: TrainingBatch, process: ReverseProcess
    ) -> Latents:
        """The shift of the mean over the step's scale: what the value gradient should be.

        By the published step d/dx_{k-1} [log p_theta - s log p_ref].
        """
        transitions = batch.transitions
        if self.prior_strength == 1.0:
            return (mean - reference) / at(self.step.scale, transitions.k, transitions.x)
        x_next, sigma = transitions.x_next, sigma_at(process, transitions)
        prior = score_of_next(x_next, reference, sigma)
        return score_of_next(x_next, mean, sigma) - self.prior_strength * prior

    def reverse_left(
        self,
        reference: ReferencePass,
        policy: Prediction,
        mean: Latents,
        x: Latents,
        batch: TrainingBatch,
        networks: Networks,
    ) -> Latents:
        """d/dx_k [log p_theta - s log p_ref] + beta gamma_k grad r(x0_hat(x_k)).

        Args:
            policy: its prediction at the leaf ``x``, and ``mean`` of its kernel.
        """
        assert reference.reverse is not None
        process, transitions = networks.model.process, batch.transitions
        by_policy = self.predictor == "policy"
        ahead = [(policy.x0_hat, self._ahead(policy, batch, networks))] if by_policy else []
        if not self.policy_graph:
            pairs = [(mean, _pull(mean, batch, process)), *ahead]
            return sum_of_products(pairs, x, "the reverse residual") + reference.reverse
        sigma = sigma_at(process, transitions)
        score = score_of_state(transitions.x_next, mean, sigma, x, create_graph=True)
        value = sum_of_products(ahead, x, "the reward's gradient") if ahead else 0.0
        return score + value + reference.reverse

    def _ahead(self, prediction: Prediction, batch: TrainingBatch, networks: Networks) -> Latents:
        """Beta gamma_k grad r at x0_hat(x_k), by x0_hat: to be taken back to x_k."""
        gradient = reward_gradient(networks, prediction.x0_hat, batch.prompts)
        return at(self.strength, batch.transitions.k, gradient) * gradient


def _pull(mean: Latents, batch: TrainingBatch, process: ReverseProcess) -> Latents:
    """d/d mean of log N(x_{k-1}; mean, sigma_k^2 I), detached."""
    sigma = sigma_at(process, batch.transitions)
    return (batch.transitions.x_next - mean.detach()) / sigma.square()
