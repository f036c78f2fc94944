"""Qwen-Image: any folder or hub id of a `QwenImagePipeline` (arXiv 2508.02324).

With guidance the guided velocity of each token has the length of the prompt's own, as in the stock
pipeline, which calls that true guidance and does it where there is a negative prompt, be it empty.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.condition import Condition, PaddedCondition
from nablaflow.models.decoding import with_statistics
from nablaflow.models.packed_latents import PATCH, PackedLatents, packed, unpacked
from nablaflow.models.parts import check_statistics
from nablaflow.models.pipelines import PipelineModel
from nablaflow.typing import Images, Latents

OTHER_KINDS = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope", "guidance_embeds")
"""Of transformers for editing, for layers, or distilled."""


class QwenImage(PackedLatents):
    """A language model for the tokens; the autoencoder is a film's, for films of one frame."""

    serves = (QwenImagePipeline,)
    call_defaults: ClassVar[dict[str, Any]] = {
        "name": "euler",
        "steps": 50,
        "guidance_scale": 4.0,
        "negative_prompt": " ",
    }
    reads_tokens = 512
    scales, shifts = ("latents_std",), ()

    @classmethod
    def check(cls, pipeline: Any) -> None:
        super().check(pipeline)
        for name in OTHER_KINDS:
            if pipeline.transformer.config.get(name):
                raise UserError(
                    f"model: its transformer ({name}) is one for editing, for layers or distilled; "
                    "use the text-to-image Qwen-Image"
                )
        config = pipeline.vae.config
        check_statistics(config, config["z_dim"])

    @staticmethod
    def channels_of_latents(config: Any) -> int:
        return config["z_dim"]

    def encode(self, prompt: str) -> Condition:
        length = self.sequence_length
        if self.device.type == "meta":
            return self.longest_prompt()
        found, _ = self.pipeline.encode_prompt(prompt, self.device, max_sequence_length=length)
        return PaddedCondition.of(found[0], length)

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert isinstance(condition, PaddedCondition)
        assert condition.hidden is not None
        assert condition.tokens is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        _, _, height, width = x.shape
        longest = max(condition.lengths())
        mask = torch.arange(longest, device=x.device) < condition.tokens[:, None]
        output = network(
            hidden_states=packed(x).to(dtype),
            timestep=timestep / 1000,
            encoder_hidden_states=condition.hidden[:, :longest].to(dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(x),
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def guided(self, negative: Latents, positive: Latents) -> Latents:
        both = packed(super().guided(negative, positive))
        length = packed(positive).norm(dim=-1, keepdim=True)
        return unpacked(both * (length / both.norm(dim=-1, keepdim=True)), *positive.shape[2:])

    # --- images -----------------------------------------------------------------------------------

    def to_autoencoder(self, x0: Latents) -> Latents:
        return with_statistics(self._autoencoder.config, x0)

    @staticmethod
    def _decoded(autoencoder: Any, latents: Latents) -> Images:
        return autoencoder.decode(latents.unsqueeze(2), return_dict=False)[0].squeeze(2)

    def checkpoint_activations(self) -> None:
        """The transformer's alone: diffusers' autoencoder has no such thing."""
        PipelineModel.checkpoint_activations(self)

    # --- in stock form ----------------------------------------------------------------------------

    def stock_call(self, prompt: str) -> dict[str, Any]:
        call = super().stock_call(prompt)
        scale = call.pop("guidance_scale")
        if scale == 1.0:
            return call
        return call | {"true_cfg_scale": scale, "negative_prompt": self._sampler.negative_prompt}
