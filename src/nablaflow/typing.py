"""The one vocabulary of shapes; jaxtyping names, checked by beartype in tests only."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int, Real
from torch import Tensor

Images = Float[Tensor, "batch 3 height width"]
"""RGB in [0, 1]."""
Latents = Float[Tensor, "batch channel h w"]
"""A state of the diffusion process: pixels in [-1, 1] for a pixel-space model."""
Batch = Float[Tensor, "batch"]
Steps = Int[Tensor, "batch"]
"""Index k of a step, one for each row of the batch."""
Timesteps = Real[Tensor, "batch"]
"""A model's own conditioning values at x_k; whole numbers, but for flow matching."""
Features = Float[Tensor, "batch feature"]

Reward = Callable[[Tensor, list[str]], Tensor]
"""``(images in [0, 1], prompts) -> rewards``: shapes (batch, 3, h, w) to (batch,), float32."""
