"""Counts passes of networks: the unit in which methods are compared.

One forward pass of one state through the denoiser (reference or policy, which are one network with
and without what was trained) or through the flow network counts 1, and so does one backward pass,
whether it is taken for the state's gradient or for the weights'.
"""

from __future__ import annotations

from torch import Tensor


class PassCounter:
    """Attributes: passes, of one state each, forward and backward."""

    def __init__(self) -> None:
        self.passes = 0

    def forward(self, output: Tensor) -> Tensor:
        """Count a batch that was computed now, and its backward pass whenever one is taken."""
        self.passes += len(output)
        if output.requires_grad:
            output.register_hook(self._backward)
        return output

    def _backward(self, gradient: Tensor) -> None:
        self.passes += len(gradient)
