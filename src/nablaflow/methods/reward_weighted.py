"""Reward-weighted regression: the denoising loss on the policy's own samples, weighted by exp r.

    loss = w(x_0) | n_theta - n |^2,     w = exp(beta r(x_0)) / mean exp(beta r)

arXiv 2305.13301, after 2302.12192; n is the noise between x_0 and x_k. One whole
regression on reference samples would end at the tilt. But each rollout is of the policy as it is by
then, so the iteration is p <- p exp(beta r): it goes on tilting, beta adds up, and only early
stopping keeps it from collapse. With ``weights: tilt`` the weight is exp(beta r) p_ref / p_theta of
the whole trajectory: a regression on samples of the reference's tilt by importance, whose fixed
point is the tilt. There the weights are all equal, but far from it a few trajectories have it all.

What is regressed on is the x_0 that the trajectory itself ended at, not x_k noised afresh. Where
the kernels' means are those of q(x_{k-1} | x_k, x_0), which holds for all samplers but DDIM with
eta below 1, the two are the same up to the sampler's discretisation, and by the trajectory's own a
policy of weights 1 stays where it is, whereas by fresh noise it learns its own sampler's errors.
With eta below 1 x_0 is nearly a function of x_k, and to regress on it would be wrong.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from pydantic import Field

from nablaflow.diffusion import has_posterior_means, jump_mean
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.contract import CreditGroup, Losses, StepwiseMethod, mean_square
from nablaflow.methods.groups import Scores, with_mean_one
from nablaflow.typing import Latents


@final
class RewardWeightedRegression(StepwiseMethod):
    """The published iteration by default, which tilts without end."""

    name: ClassVar[str] = "reward-weighted-regression"
    needs_reward_gradient: ClassVar[bool] = False

    weights: Literal["reward", "tilt"] = Field(
        default="reward",
        description="exp(beta r); or times p_ref / p_theta of the trajectory, for K passes of the "
        "reference",
    )
    normalization: Literal["prompt", "batch"] = Field(
        default="prompt", description="over whose images the mean of the weights is 1"
    )

    @property
    def aims_at_tilt(self) -> bool:
        return self.weights == "tilt"

    @property
    def needs_path_ratio(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.weights == "tilt"

    @property
    def uses_flow(self) -> bool:
        return False

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        if not has_posterior_means(process):
            raise UserError(
                f"sampler: {self.name} regresses on the x_0 that followed, which needs the "
                "noise of the noising process; set sampler.name=ddim and sampler.eta=1"
            )

    @property
    def credit_group(self) -> CreditGroup:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.normalization

    def group_credits(self, scores: Scores, log_ratio: Scores | None) -> Scores:
        log_weight = self.beta * scores
        if self.weights == "tilt":
            assert log_ratio is not None
            log_weight = log_weight - log_ratio.to(log_weight)
        return with_mean_one(log_weight)

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        assert batch.x0 is not None
        model, t = networks.model, batch.transitions
        prediction = model.predict(t.x, t.k, batch.condition)
        end = torch.zeros_like(t.k)
        expected = jump_mean(model.process, t.x, prediction, t.k, end)
        error = mean_square(_as_noise(model.process, batch, expected - batch.x0))
        assert batch.credit is not None
        weight = batch.credit
        metrics = {"weight": weight, "weight_square": weight.square(), "error": error}
        return Losses({"regression": weight * error}, metrics)


def _as_noise(process: ReverseProcess, batch: TrainingBatch, change: Latents) -> Latents:
    """The change of the noise between x_0 and x_k that a change of x_0 makes."""
    t = batch.transitions
    kept = at(process.alpha_bar, t.k, t.x) / at(process.alpha_bar, torch.zeros_like(t.k), t.x)
    return (kept / (1.0 - kept)).sqrt() * change
