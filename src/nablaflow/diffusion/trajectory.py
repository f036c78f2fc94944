"""Trajectories of a reverse process, and the record of the transitions kept from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor

from nablaflow.diffusion.kernels import kernel_mean
from nablaflow.diffusion.prediction import Prediction
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.typing import Batch, Latents, Steps

Predict = Callable[[Tensor, Tensor], Prediction]
"""``(x, k) -> Prediction`` for a whole batch, guidance included."""

Noise = list[torch.Generator] | torch.Generator
"""One generator for each trajectory, or one that draws the noise of all of them at once."""


@dataclass(frozen=True)
class Transitions:
    """A flat batch of transitions.

    Attributes:
        x: states x_k.
        x_next: states x_{k-1}, one step less noisy.
        k: step indices.
        epsilon: the noise prediction at ``x`` when the transition was sampled.
        trajectory: the row of the rollout that each transition comes from.
        mean: of the kernel that each x_{k-1} was sampled from; None where there was none. It does
            not follow from ``epsilon``, which at zero terminal SNR says nothing about x0_hat.
    """

    x: Latents
    x_next: Latents
    k: Steps
    epsilon: Latents
    trajectory: Steps
    mean: Latents | None = None

    def __len__(self) -> int:
        return len(self.k)

    def __getitem__(self, index: slice | Tensor) -> Transitions:
        return Transitions(
            self.x[index],
            self.x_next[index],
            self.k[index],
            self.epsilon[index],
            self.trajectory[index],
            None if self.mean is None else self.mean[index],
        )

    @staticmethod
    def concatenate(parts: Sequence[Transitions]) -> Transitions:
        means = [part.mean for part in parts if part.mean is not None]
        return Transitions(
            torch.cat([part.x for part in parts]),
            torch.cat([part.x_next for part in parts]),
            torch.cat([part.k for part in parts]),
            torch.cat([part.epsilon for part in parts]),
            torch.cat([part.trajectory for part in parts]),
            torch.cat(means) if len(means) == len(parts) else None,
        )


@dataclass(frozen=True)
class Trajectories:
    """The clean states of a batch of trajectories and what was kept besides.

    Attributes:
        log_prob: of all x_{k-1} given x_k by the kernels that sampled them, without the constants
            that other kernels of the same sigma have too.
        states: x_k by k, where they were asked for.
    """

    x0: Latents
    transitions: Transitions
    log_prob: Batch
    states: Float[Tensor, "levels batch channel h w"] | None = None


def trajectory_noise(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator for each trajectory: its noise does not depend on how a batch is split."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def sample_trajectories(
    predict: Predict,
    process: ReverseProcess,
    shape: tuple[int, ...],
    generators: Noise,
    device: torch.device,
    keep: Int[Tensor, "trajectory transition"] | None = None,
    on_step: Callable[[int], None] | None = None,
    *,
    n: int | None = None,
    keep_states: bool = False,
) -> Trajectories:
    """Sample x_K, ..., x_0; keep the transitions named in ``keep``.

    Args:
        shape: of one state.
        generators: one for each trajectory, or one that draws the noise of all ``n`` at once.
        keep: step indices to keep for each trajectory; a step named twice is kept twice.
        on_step: called with k after each step, for progress.
        keep_states: keep every state of every trajectory.
    """
    if isinstance(generators, torch.Generator):
        assert n is not None
    else:
        n = len(generators)
    x = randn_tensor((n, *shape), generator=generators, device=device, dtype=torch.float32)
    kept: list[Transitions] = []
    # Hundreds of thousands of squares add up to it; Apple's accelerator has no float64.
    wide = torch.float32 if device.type == "mps" else torch.float64
    log_prob = torch.zeros(n, device=device, dtype=wide)
    states = [x]
    for step in range(process.steps, 0, -1):
        k = torch.full((n,), step, device=device)
        prediction = predict(x, k)
        noise = randn_tensor((n, *shape), generator=generators, device=device, dtype=torch.float32)
        mean = kernel_mean(process, x, prediction, k)
        x_next = mean + at(process.sigma, k, x) * noise
        log_prob = log_prob - 0.5 * noise.to(wide).square().flatten(1).sum(1)
        if keep is not None:
            rows = (keep == step).nonzero()[:, 0].to(device)
            epsilon = prediction.epsilon[rows].float()
            kept.append(Transitions(x[rows], x_next[rows], k[rows], epsilon, rows, mean[rows]))
        x = x_next
        if keep_states:
            states.append(x)
        if on_step is not None:
            on_step(step)
    empty = torch.zeros(0, dtype=torch.long, device=device)
    none = Transitions(x[:0], x[:0], empty, x[:0], empty, x[:0])
    path = torch.stack(states[::-1]) if keep_states else None
    return Trajectories(x, Transitions.concatenate([none, *kept]), log_prob, path)
