"""Trust in the forward-looking reward, measured: how much of a predicted reward comes true.

    gamma_k = Cov(r(x_0), r(x0_hat(x_k))) / Var(r(x0_hat(x_k)))

within prompts, over trajectories of the reference. To first order in beta the value is
V_k(x_k) = beta E_ref[r(x_0) | x_k] + const, and beta gamma_k r(x0_hat(x_k)) is its least-squares
fit by the reward of the prediction. So gamma_k is 1 near the image and where the reward is linear
in what x_k leaves open, and falls at high noise, where a prediction is no image and its reward says
little. It is a slope of the reward alone: it has no unit, and costs no gradient.

What x_k leaves open only grows with k, so the slopes are made not to rise with k (isotonic least
squares, each weighted by its precision).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion import Prediction, trajectory_noise
from nablaflow.errors import UserError
from nablaflow.memory import in_parts
from nablaflow.models import DiffusionModel
from nablaflow.rewards import NamedReward

MOST_LEVELS = 10
"""At which it is measured; between them gamma is linear in k."""


@torch.no_grad()
def measure_gamma(
    model: DiffusionModel,
    reward: NamedReward,
    prompts: list[str],
    seeds: list[int],
    *,
    batch: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "levels"]:
    """gamma_k for k = 0, ..., K; gamma_0 is 1.

    Args:
        prompts: one for each trajectory, every one of them two or more times.
        seeds: of each trajectory's noise.
        batch: trajectories at once; fewer where memory runs out.
        on_progress: told how many more are done.

    Raises:
        UserError: the reward is the same for all images of each prompt.
    """
    levels = measured_levels(model.process.steps)
    ends, predicted = [], []

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        return _rewards(model, reward, prompts[rows], seeds[rows], levels)

    for end, ahead in in_parts(part, len(prompts), batch, "training.rollout_batch"):
        ends.append(end)
        predicted.append(ahead)
        on_progress(len(end))
    end = _within_prompts(torch.cat(ends)[:, None], prompts)[:, 0]
    if not end.any():
        raise UserError(
            f"reward: {reward.name} gives all of {len(end)} reference images of a prompt the same; "
            "there is nothing to align with"
        )
    slopes = monotone_slopes(end, _within_prompts(torch.cat(predicted), prompts))
    k = np.arange(model.process.steps + 1)
    table = np.interp(k, [0, *levels], [1.0, *slopes.tolist()])
    return torch.from_numpy(table).float()


def measured_levels(steps: int) -> list[int]:
    """At most `MOST_LEVELS` of k = 1, ..., K, evenly spaced, K among them."""
    count = min(MOST_LEVELS, steps)
    return [round(steps * (index + 1) / count) for index in range(count)]


def monotone_slopes(
    end: Float[Tensor, "trajectory"], predicted: Float[Tensor, "trajectory level"]
) -> Float[Tensor, "level"]:
    """Slopes of ``end`` on each column of ``predicted``, made not to rise from column to column.

    Both have mean 0 within each prompt. A column that does not vary says nothing: its slope is 0.
    """
    from scipy.optimize import isotonic_regression  # here, since it takes a while to import

    square = predicted.square().sum(0)
    slope = (predicted * end[:, None]).sum(0) / square.clamp_min(1e-12 * end.square().sum())
    left = (end[:, None] - slope * predicted).square().sum(0).clamp_min(1e-9 * end.square().sum())
    precision = (square / left).clamp_min(1e-12)
    fitted = isotonic_regression(slope.numpy(), weights=precision.numpy(), increasing=False)
    return torch.from_numpy(fitted.x.copy())  # it may be a reversed view


def _rewards(
    model: DiffusionModel,
    reward: NamedReward,
    prompts: list[str],
    seeds: list[int],
    levels: list[int],
) -> tuple[Tensor, Tensor]:
    """r(x_0), and r(x0_hat(x_k)) by trajectory and level: of the reference, float64."""
    condition = model.condition(prompts)
    ahead: dict[int, Tensor] = {}

    def predict_and_look(x: Tensor, k: Tensor) -> Prediction:
        prediction = model.predict(x, k, condition)
        level = int(k[0])
        if level in levels:
            ahead[level] = reward(model.decode(prediction.x0_hat), prompts)
        return prediction

    with model.reference():
        found = model.sample(prompts, trajectory_noise(seeds), predict=predict_and_look)
        end = reward(model.decode(found.x0), prompts)
    columns = torch.stack([ahead[level] for level in levels], 1)
    return end.cpu().double(), columns.cpu().double()


def _within_prompts(values: Tensor, prompts: list[str]) -> Tensor:
    """``values`` less the mean of their own prompt."""
    index = torch.tensor([prompts.index(prompt) for prompt in prompts])
    centred = values.clone()
    for prompt in index.unique():
        rows = index == prompt
        centred[rows] -= values[rows].mean(0)
    return centred
