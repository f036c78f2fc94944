"""Families whose network takes each square of four latents as one token of an image."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.flow_schedule import FlowSchedule, shift_by_tokens
from nablaflow.models.flow_matching import FlowMatching
from nablaflow.models.settings import SamplerSettings
from nablaflow.typing import Images, Latents

PATCH = 2  # latents on each side of a token


class PackedLatents(FlowMatching):
    """States are latents, packed for the network; the shift is linear in the number of tokens."""

    @staticmethod
    def shape_of_states(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int, int]:
        height, width = FlowMatching.latent_sides(pipeline, sampler, PATCH)
        return int(pipeline.transformer.config["in_channels"]) // PATCH**2, height, width

    def schedule(self) -> FlowSchedule:
        config = self.pipeline.scheduler.config
        _, height, width = self.shape_of_states(self.pipeline, self._sampler)
        tokens = (height // PATCH) * (width // PATCH)
        return FlowSchedule(config, "even", shift_by_tokens(config, tokens))

    @torch.no_grad()
    def stock_image(self, pipeline: Any, prompt: str, **options: Any) -> Images:
        tokens = self.call_stock(pipeline, prompt, output_type="latent", **options)
        _, height, width = self.state_shape
        return self.decode(unpacked(tokens, height, width))


def packed(x: Latents) -> Float[Tensor, "batch token feature"]:
    """Each square of four latents as one token."""
    return torch.nn.functional.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)


def unpacked(tokens: Float[Tensor, "batch token feature"], height: int, width: int) -> Latents:
    """`packed` undone, at a size in latents."""
    squares = tokens.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return torch.nn.functional.pixel_shuffle(squares, PATCH)


def positions(rows: int, columns: int) -> Float[Tensor, "token 3"]:
    """(0, row, column) of each token of an image."""
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32),
        torch.arange(columns, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)
