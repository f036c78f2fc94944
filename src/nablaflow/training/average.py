"""Exponential moving averages of parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """An exponential moving average of named parameters, which it holds as plain tensors."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Move by 1 - decay toward ``parameters``."""
        for name, value in self.values.items():
            value.lerp_(parameters[name], 1.0 - self.decay)
