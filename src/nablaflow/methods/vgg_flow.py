"""VGG-Flow (arXiv 2512.05116): the velocity follows the value gradient of a control problem.

With v = epsilon - x_0 at x_s = (1 - s) x_0 + s epsilon, and no noise on the way from s = 1 to 0,

    min E[ 1/2 int |v_theta - v_ref|^2 ds  -  beta r(x_0) ]

has the optimum v_theta = v_ref - beta G, G the gradient of the value by x_s. Along the path it goes
by the adjoint of the reference, dG/ds = -J_v^T G, and ends as grad r(x_0). It is modelled as

    G(x_s, s) = (1 - s)^2 grad r(x_s - s sg(v_theta))  +  g_phi(x_s, s),

v detached, so that the first part has no Jacobian of the network; g_phi corrects it. Three losses:

    matching      |v_theta - sg(v_ref - beta G)|^2
    consistency   |(G(x_{k-1}) - G(x_k)) / (s_k - s_{k-1}) - J_v^T G(x_{k-1})|^2
    terminal      |g_phi(x_0, 0)|^2

The optimum is not the tilt, but moves each noise to an image of more reward as cheaply as it can:
for unit normal images and a linear reward it moves them by pi / 2 times as much as the tilt does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import Prediction, flow_time
from nablaflow.diffusion.process import at
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.estimators.reference import reward_gradient, vector_jacobian
from nablaflow.methods.contract import (
    Losses,
    SamplerNoise,
    StepwiseMethod,
    flow_scores,
    mean_square,
    norm,
)
from nablaflow.typing import Latents, Steps

TRUST = {"squared": 2, "linear": 1, "one": 0}


@final
class VGGFlow(StepwiseMethod):
    """As published: an optimum of its own, which beta draws toward the reward as the tilt's does.

    A sampler's state is x_s over its norm (`nablaflow.diffusion.prediction`); G is by x_s itself.
    """

    name: ClassVar[str] = "vgg-flow"
    needs_reward_gradient: ClassVar[bool] = True
    sampler_noise: ClassVar[SamplerNoise] = "none"

    always_last: bool = Field(
        default=True,
        description="train the last transition of each trajectory besides the drawn ones",
    )
    trust: Literal["squared", "linear", "one"] = Field(
        default="squared", description="in the reward's gradient at x0_hat: (1 - s)^2, 1 - s or 1"
    )
    consistency_weight: float = Field(
        default=1.0, ge=0, description="of the value gradient's change along a step"
    )
    terminal_weight: float = Field(
        default=1e3, ge=0, description="of the correction at the image, which is none"
    )
    max_gradient: float | None = Field(
        default=None,
        gt=0,
        description="largest norm of the reward's gradient at a state; longer ones are scaled down",
    )

    def idle(self, *, flow: bool) -> Iterator[tuple[str, str]]:
        for name in () if flow else ("consistency_weight", "terminal_weight"):
            yield name, "there is no flow network to train; leave flow=null out"

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        t = batch.transitions
        policy = networks.model.predict(t.x, t.k, batch.condition)
        ahead = self._looked_ahead(policy.x0_hat.detach(), t.k, batch, networks)
        if networks.flow is None:
            value, reference, terms = ahead, _reference(batch, networks), {}
        else:
            value, reference, terms = self._corrected(ahead, batch, networks)
        change = velocity(policy) - reference
        matching = mean_square(change + self.beta * value.detach())
        metrics = {
            "value_gradient_norm": self.beta * norm(value),
            "flow_score_norm": self.beta * norm(value - ahead),
            "velocity_change": mean_square(change),
        }
        return Losses({"matching": matching, **terms}, metrics)

    def _corrected(
        self, ahead: Latents, batch: TrainingBatch, networks: Networks
    ) -> tuple[Latents, Latents, dict[str, Tensor]]:
        """G, the reference's v, and what trains the flow network."""
        assert networks.flow is not None
        correction, next_correction = flow_scores(networks.flow, networks.model.process, batch)
        value, following = ahead + correction, self._next(batch, networks) + next_correction
        reference, pulled = _pulled_back(following.detach(), batch, networks)
        residual = (following - value) / _step(batch, networks) - pulled
        ended = (batch.transitions.k == 1).float()
        terms = {
            "consistency": self.consistency_weight * mean_square(residual),
            "terminal": self.terminal_weight * ended * mean_square(next_correction),
        }
        return value, reference, terms

    def _next(self, batch: TrainingBatch, networks: Networks) -> Latents:
        """The first part of G at x_{k-1}; at x_0 that is all of it."""
        model, t = networks.model, batch.transitions
        with torch.no_grad():
            x0_hat = model.predict(t.x_next, t.k - 1, batch.condition).x0_hat
        ended = (t.k == 1).reshape(-1, *[1] * (t.x.ndim - 1))
        return self._looked_ahead(torch.where(ended, t.x_next, x0_hat), t.k - 1, batch, networks)

    def _looked_ahead(
        self, x0_hat: Latents, k: Steps, batch: TrainingBatch, networks: Networks
    ) -> Latents:
        """(1 - s)^2 grad r(x0_hat), a constant."""
        gradient = reward_gradient(networks, x0_hat, batch.prompts)
        if self.max_gradient is not None:
            size = norm(gradient).reshape(-1, *[1] * (gradient.ndim - 1))
            gradient = gradient * (self.max_gradient / size.clamp_min(1e-12)).clamp_max(1.0)
        trust = (1.0 - flow_time(networks.model.process.alpha_bar)) ** TRUST[self.trust]
        trust = torch.where(torch.arange(len(trust)) == 0, 1.0, trust)
        return at(trust, k, x0_hat) * gradient


def velocity(prediction: Prediction) -> Latents:
    """Of x_s by s, epsilon - x0_hat."""
    return prediction.epsilon - prediction.x0_hat


@torch.no_grad()
def _reference(batch: TrainingBatch, networks: Networks) -> Latents:
    """Its v at x_k."""
    t = batch.transitions
    with networks.model.reference():
        return velocity(networks.model.predict(t.x, t.k, batch.condition))


def _step(batch: TrainingBatch, networks: Networks) -> Tensor:
    """s_k - s_{k-1} of each transition."""
    t, s = batch.transitions, flow_time(networks.model.process.alpha_bar.double())
    return at(s, t.k, t.x) - at(s, t.k - 1, t.x)


def _pulled_back(
    value: Latents, batch: TrainingBatch, networks: Networks
) -> tuple[Latents, Latents]:
    """The reference's v at x_k, and J_v^T ``value`` by x_s; constants both."""
    model, t = networks.model, batch.transitions
    per_state = model.process.alpha_bar.sqrt() + (1.0 - model.process.alpha_bar).sqrt()
    with model.reference(), torch.enable_grad():
        x = t.x.detach().requires_grad_()
        reference = velocity(model.predict(x, t.k, batch.condition))
        pulled = vector_jacobian(reference, x, value, "the value gradient")
    return reference.detach(), at(per_state, t.k, t.x) * pulled
