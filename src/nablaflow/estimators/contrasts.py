"""Samples of the reference, contrasted with each other: who has which weight in the tilt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.diffusion import noised, trajectory_noise
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.memory import in_parts
from nablaflow.models import Condition, DiffusionModel
from nablaflow.progress import Done
from nablaflow.rewards import NamedReward
from nablaflow.typing import Batch, Latents, Steps


@dataclass(frozen=True)
class Contrast:
    """Samples of one prompt, noised to one level, with their weights in the tilt.

    Attributes:
        x: states x_k.
        weights: of sum 1, float64, on the CPU.
        condition: one row for each, as are ``k``.
    """

    x: Latents
    k: Steps
    weights: Batch
    condition: Condition
    prompt: str

    def loss(self, value: Batch) -> Tensor:
        """Cross entropy of the tilt's weights against those by ``value``, nats."""
        weights = self.weights.to(value)
        return -(weights * torch.log_softmax(value, 0)).sum()


@dataclass(frozen=True)
class ReferenceSamples:
    """Clean states of the reference with their rewards, by prompt.

    Attributes:
        x0: states, (sample, ...), on the model's device.
        rewards: of their images, float64, on the CPU.
        condition: of each prompt, one row for each.
        rows: of each prompt, which samples are its own.
    """

    x0: Latents
    rewards: Batch
    prompts: list[str]
    condition: Condition
    rows: list[Tensor]

    @staticmethod
    def of(
        model: DiffusionModel, x0: Latents, rewards: Batch, prompts: list[str]
    ) -> ReferenceSamples:
        """Samples with their rewards, and the prompt of each."""
        texts = list(dict.fromkeys(prompts))
        index = torch.tensor([texts.index(prompt) for prompt in prompts])
        rows = [(index == place).nonzero()[:, 0] for place in range(len(texts))]
        return ReferenceSamples(x0, rewards, texts, model.condition(texts), rows)

    def split(self, share: float) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of each prompt: the first, and a share of them at the end."""
        cuts = [len(rows) - max(2, round(share * len(rows))) for rows in self.rows]
        pairs = list(zip(self.rows, cuts, strict=True))
        return [rows[:cut] for rows, cut in pairs], [rows[cut:] for rows, cut in pairs]

    def contrast(
        self,
        process: ReverseProcess,
        beta: float,
        place: int,
        rows: Tensor,
        k: int,
        generator: torch.Generator,
    ) -> Contrast:
        """Some samples of the prompt at ``place``, at level ``k``."""
        x0 = self.x0[rows.to(self.x0.device)]
        steps = torch.full((len(rows),), k, device=x0.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        return Contrast(
            x=noised(process, x0, steps, noise),
            k=steps,
            weights=torch.softmax(beta * self.rewards[rows], 0),
            condition=self.condition[place : place + 1].expand(len(rows)),
            prompt=self.prompts[place],
        )

    def check(self, reward: NamedReward) -> None:
        """Raise `UserError` where the reward is the same for all samples of each prompt."""
        if not any(self.rewards[rows].std() > 0 for rows in self.rows):
            raise UserError(
                f"reward: {reward.name} gives all reference images of a prompt the same; "
                "there is nothing to align with"
            )


@torch.no_grad()
def draw_reference(
    model: DiffusionModel,
    reward: NamedReward,
    prompts: list[str],
    seeds: list[int],
    batch: int,
    on_progress: Done = lambda done: None,
) -> tuple[Latents, Batch]:
    """Samples of the reference, one for each prompt, and their rewards as `ReferenceSamples` has.

    Args:
        seeds: of each sample's noise.
        batch: samples at once; fewer where memory runs out.
        on_progress: told how many more are done.
    """

    def part(rows: slice) -> tuple[Latents, Batch]:
        with model.reference():
            found = model.sample(prompts[rows], trajectory_noise(seeds[rows]))
        return found.x0, reward(model.decode(found.x0), prompts[rows]).cpu().double()

    states, rewards = [], []
    for x0, scores in in_parts(part, len(prompts), batch, "training.rollout_batch"):
        states.append(x0)
        rewards.append(scores)
        on_progress(len(x0))
    return torch.cat(states), torch.cat(rewards)
