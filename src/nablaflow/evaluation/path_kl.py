"""How far the policy's trajectories are from the reference's, found while they are sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from nablaflow.diffusion import Prediction, kernel_mean
from nablaflow.diffusion.process import at
from nablaflow.models import Condition, DiffusionModel


class PathKL:
    """The policy's prediction, to sample with; ``total`` is what its steps have added up to.

        KL(p_theta || p_ref) = E sum_k |mu_theta - mu_ref|^2 / (2 sigma_k^2)(x_k),   x_k ~ p_theta

    nats, of whole trajectories x_K, ..., x_0: an upper bound of that of the images. Each trajectory
    gives one unbiased sample of it, never negative. Costs a pass of the reference a step.

    Attributes:
        total: (batch,) of each trajectory so far.
    """

    def __init__(self, model: DiffusionModel, condition: Condition, trajectories: int) -> None:
        self._model, self._condition = model, condition
        # Apple's accelerator has no float64.
        wide = torch.float32 if model.device.type == "mps" else torch.float64
        self.total = torch.zeros(trajectories, device=model.device, dtype=wide)

    @torch.no_grad()
    def __call__(self, x: Tensor, k: Tensor) -> Prediction:
        model, process = self._model, self._model.process
        policy = model.predict(x, k, self._condition)
        with model.reference():
            reference = model.predict(x, k, self._condition)
        shift = kernel_mean(process, x, policy, k) - kernel_mean(process, x, reference, k)
        scaled = (shift / at(process.sigma, k, x)).to(self.total.dtype)
        self.total += 0.5 * scaled.square().flatten(1).sum(1)
        return policy
