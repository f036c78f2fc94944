"""What an update of a known architecture costs, in FLOPs counted on shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from nablaflow.models.architectures.blueprint import DECODER, SDXL_UNET
from nablaflow.models.flops import counted

PASSES, RECOMPUTED = 6, 2
"""Of the denoiser for a transition: the policy's forward and backward, the reference's mean, and
the value gradient through the reference. `RECOMPUTED` are the forward passes that gradient
checkpointing does again. Held against the count of a whole update in tests/models/test_costs.py."""
DECODES = 2  # forward and backward, of the reward at x0_hat


@dataclass(frozen=True)
class Architecture:
    """A Stable Diffusion by its size.

    Attributes:
        side: of its images, pixels.
        width: of its text embeddings.
        unet: what else its configuration says.
        pooled: width of the pooled embedding that is added to the time with six sizes; 0: none.
    """

    side: int
    width: int
    heads: int | tuple[int, ...] = 8
    unet: Mapping[str, Any] = field(default_factory=dict)
    pooled: int = 0

    @cached_property
    @torch.no_grad()
    def denoiser_flops(self) -> int:
        """FLOPs of one pass at one state, without guidance."""
        with torch.device("meta"):
            options: Any = {"attention_head_dim": self.heads, "cross_attention_dim": self.width}
            options |= self.unet
            network = UNet2DConditionModel(sample_size=self.side // 8, **options)
            x, tokens = torch.zeros(1, 4, self.side // 8, self.side // 8), (1, 77, self.width)
            added = None
            if self.pooled:
                sizes = torch.zeros(1, 6)
                added = {"text_embeds": torch.zeros(1, self.pooled), "time_ids": sizes}
            with counted() as counter:
                network(x, torch.zeros(1), torch.zeros(tokens), added_cond_kwargs=added)
        return counter.total

    @cached_property
    @torch.no_grad()
    def decoder_flops(self) -> int:
        """FLOPs of decoding one image."""
        with torch.device("meta"):
            options: Any = dict(DECODER)
            decoder: Any = AutoencoderKL(**options)
            with counted() as counter:
                decoder.decode(torch.zeros(1, 4, self.side // 8, self.side // 8))
        return counter.total


STABLE_DIFFUSION_1 = Architecture(512, 768)
STABLE_DIFFUSION_2 = Architecture(768, 1024, (5, 10, 20, 20))
STABLE_DIFFUSION_XL = Architecture(
    1024,
    2048,
    (5, 10, 20),
    SDXL_UNET,
    pooled=1280,
)


def update_flops(
    denoiser: int,
    decoder: int,
    *,
    trajectories: int,
    steps: int,
    trained: int,
    checkpointing: bool = False,
    updates_per_rollout: int = 1,
) -> float:
    """FLOPs of one update of residual ∇-DB by the exact step, without the reward's own.

    Args:
        denoiser: FLOPs of one pass at one state; twice that with guidance.
        decoder: FLOPs of decoding one image.
        steps: of a trajectory.
        trained: transitions of each trajectory.
        updates_per_rollout: that share one; the mean over them.
    """
    rollout = (steps * denoiser + decoder) / updates_per_rollout
    passes = PASSES + (RECOMPUTED if checkpointing else 0)
    return trajectories * (rollout + trained * (passes * denoiser + DECODES * decoder))


def speed(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float], repeats: int = 3
) -> float:
    """FLOPs a second of a convolution as Stable Diffusion has most of, the best of some tries."""
    x = torch.zeros(1, 320, 64, 64, device=device, dtype=dtype)
    kernel = torch.zeros(320, 320, 3, 3, device=device, dtype=dtype)
    flops, best = 2 * 320 * 320 * 9 * 64 * 64, float("inf")
    for _ in range(1 + repeats):  # the first is slower than any after it
        began = clock()
        torch.nn.functional.conv2d(x, kernel, padding=1).sum().item()  # which waits for a GPU
        best = min(best, clock() - began)
    return flops / max(best, 1e-9)
