"""Chroma: any folder or hub id of a `ChromaPipeline`: FLUX.1 without distillation, smaller.

Its network reads the T5's tokens and one of the padding behind them. The stock pipeline gives that
mask as numbers, 1 and 0, which attention adds to its logits; so does this, for the same images.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import ChromaPipeline
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nablaflow.models.condition import Condition, PaddedCondition
from nablaflow.models.flux import LAYERS
from nablaflow.models.kohya import Layout
from nablaflow.models.packed_latents import PATCH, PackedLatents, packed, positions, unpacked
from nablaflow.typing import Latents


class Chroma(PackedLatents):
    """A T5 for the tokens, and guidance by a negative prompt; blocks as FLUX.1's."""

    serves = (ChromaPipeline,)
    load_options: ClassVar[dict[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    call_defaults: ClassVar[dict[str, Any]] = {
        "name": "euler",
        "steps": 35,
        "guidance_scale": 5.0,
    }
    reads_tokens = 512
    # One network gives all the modulations that FLUX.1's blocks have layers for.
    published_layers: ClassVar[Layout | None] = {
        **{name: parts for name, parts in LAYERS.items() if "mod" not in name},
        "distilled_guidance_layer.in_proj": ("distilled_guidance_layer.in_proj",),
        "distilled_guidance_layer.out_proj": ("distilled_guidance_layer.out_proj",),
        "distilled_guidance_layer.layers.{}.in_layer": (
            "distilled_guidance_layer.layers.{}.linear_1",
        ),
        "distilled_guidance_layer.layers.{}.out_layer": (
            "distilled_guidance_layer.layers.{}.linear_2",
        ),
    }

    def encode(self, prompt: str) -> Condition:
        if self.device.type == "meta":
            return self.longest_prompt()
        hidden, _, mask, *_ = self.pipeline.encode_prompt(
            prompt,
            None,
            self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.sequence_length,
        )
        return PaddedCondition(hidden, tokens=mask.sum(1).long())

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert isinstance(condition, PaddedCondition)
        assert condition.hidden is not None
        assert condition.tokens is not None
        network: Any = self.adapter.active()
        dtype = next(network.parameters()).dtype
        _, _, height, width = x.shape
        image, tokens = packed(x).to(dtype), condition.hidden.shape[1]
        read = torch.arange(tokens, device=x.device) < condition.tokens[:, None]
        mask = torch.cat([read.to(dtype), image.new_ones(image.shape[:2])], dim=1)
        for block in network.single_transformer_blocks:
            block.mask = mask  # for `_checkpointed`
        output = network(
            hidden_states=image,
            timestep=timestep / 1000,
            encoder_hidden_states=condition.hidden.to(dtype),
            txt_ids=x.new_zeros(tokens, 3, dtype=dtype),
            img_ids=positions(height // PATCH, width // PATCH).to(x.device, dtype),
            attention_mask=mask,
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def checkpoint_activations(self) -> None:
        """As for others, with the mask, which diffusers' own leaves out of the single blocks."""
        super().checkpoint_activations()
        network: Any = self.network
        network.enable_gradient_checkpointing(_checkpointed)


def _checkpointed(block: Any, *given: Any) -> Any:
    if isinstance(block, ChromaSingleTransformerBlock):
        given = (*given, block.mask)
    return checkpoint(block, *given, use_reentrant=False)
