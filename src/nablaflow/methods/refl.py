"""ReFL (arXiv 2304.05977): the reward's gradient through one prediction at a random late step.

    loss = -beta min(r(x0_hat(x_k)), ceiling) + w | eps_theta - eps_ref |^2(x_k)

The second term stands for the pretraining loss E|eps - eps_theta(x_k)|^2 on images. On the
reference's own samples that is E|eps - eps_ref|^2 + E|eps_ref - eps_theta|^2, for eps_ref(x_k) =
E[eps | x_k]: the first part is a constant, the second is this term, at other states.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import kernel_mean
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.contract import Losses, Method, mean_square, norm, sigma_at
from nablaflow.methods.scored import score


@final
class ReFL(Method):
    """One step with a gradient, whatever the length of the trajectory."""

    name: ClassVar[str] = "refl"
    needs_reward_gradient: ClassVar[bool] = True
    one_transition: ClassVar[bool] = True

    first: int | float = Field(
        default=1, gt=0, description="least k that is drawn: a step, or as 0.1 a share of them"
    )
    last: int | float = Field(
        default=0.25, gt=0, description="largest k, alike (published: 1 to 10 of 40 steps)"
    )
    ceiling: float | None = Field(
        default=None,
        description="reward beyond which nothing is gained (published: 2, of ImageReward)",
    )
    pretraining_weight: float = Field(
        default=1.0, ge=0, description="of the squared distance to the reference's noise prediction"
    )

    @property
    def uses_flow(self) -> bool:
        return False

    def draw(
        self, trajectories: int, process: ReverseProcess, strata: int, generator: torch.Generator
    ) -> Int[Tensor, "trajectory transition"]:
        """One k for each trajectory, uniformly; ``strata`` have no part in it."""
        first, last = (_step(bound, process) for bound in (self.first, self.last))
        return torch.randint(first, last + 1, (trajectories, 1), generator=generator)

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        for name, bound in (("first", self.first), ("last", self.last)):
            if bound > (process.steps if isinstance(bound, int) else 1):
                raise UserError(
                    f"method.{name}: {bound} is neither a step, 1 to sampler.steps="
                    f"{process.steps}, nor a share of them, up to 1.0"
                )
        first, last = (_step(bound, process) for bound in (self.first, self.last))
        if first > last:
            raise UserError(
                f"method.first: step {first} is beyond method.last, step {last}; use a smaller one"
            )

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        model, t = networks.model, batch.transitions
        policy = model.predict(t.x, t.k, batch.condition)
        with model.reference(), torch.no_grad():
            reference = model.predict(t.x, t.k, batch.condition)
        scored = score(networks, policy.x0_hat, batch.prompts)
        terms = {"reward": -self.beta * self._valued(scored.reward)}
        change = mean_square(policy.epsilon - reference.epsilon)
        if self.pretraining_weight > 0:
            terms["pretraining"] = self.pretraining_weight * change
        shift = kernel_mean(model.process, t.x, policy, t.k) - kernel_mean(
            model.process, t.x, reference, t.k
        )
        metrics = {
            "reward_ahead": scored.reward,
            "value_gradient_norm": self.beta * norm(scored.gradient),
            "mean_shift": norm(shift),
            "kl": 0.5 * norm(shift / sigma_at(model.process, t)).square(),
        }
        return Losses(terms, metrics)

    def _valued(self, reward: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """The paper's phi, up to a constant: -ReLU(ceiling - r) + ceiling."""
        return reward if self.ceiling is None else reward.clamp_max(self.ceiling)


def _step(bound: int | float, process: ReverseProcess) -> int:
    """A step as it is, or the nearest to a share of them."""
    return bound if isinstance(bound, int) else max(1, round(bound * process.steps))
