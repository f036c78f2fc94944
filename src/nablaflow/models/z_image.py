"""Z-Image: any folder or hub id of a `ZImagePipeline`, the base model or Turbo (arXiv 2511.22699).

Its conventions are its own and are translated here: the network is told 1 - s and gives the
negative of the velocity, and the stock pipeline's guidance g is a ``sampler.guidance_scale`` of
1 + g. Turbo was distilled and takes no guidance; nothing in its folder says that it is one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from nablaflow.diffusion.flow_schedule import FlowSchedule, shift_by_tokens
from nablaflow.errors import UserError
from nablaflow.models.condition import Condition, PaddedCondition
from nablaflow.models.flow_matching import FlowMatching, in_blocks
from nablaflow.models.kohya import Layout
from nablaflow.models.parts import check_template
from nablaflow.models.settings import SamplerSettings
from nablaflow.models.sizes import check_positions, sides
from nablaflow.typing import Latents

PATCH = 2  # latents on each side of a token
MULTIPLE = 32  # the network pads prompts to whole multiples
SIDE = 1024  # of an image by default, pixels
_BLOCK: Layout = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    **{f"feed_forward.{name}": (f"feed_forward.{name}",) for name in ("w1", "w2", "w3")},
    "adaLN_modulation.0": ("adaLN_modulation.0",),
}


class ZImage(FlowMatching):
    """A language model for the tokens, which the network reads at each prompt's own length."""

    serves = (ZImagePipeline,)
    call_defaults: ClassVar[dict[str, Any]] = {
        "name": "euler",
        "steps": 50,
        "guidance_scale": 6.0,
    }
    reads_tokens = 512
    templated = True
    reads_width = "cap_feat_dim"
    published_layers: ClassVar[Layout | None] = {
        **in_blocks("layers", "layers", _BLOCK),
        **in_blocks("noise_refiner", "noise_refiner", _BLOCK),
        **in_blocks("context_refiner", "context_refiner", _BLOCK),
        "x_embedder": ("all_x_embedder.2-1",),
        "cap_embedder.1": ("cap_embedder.1",),
        "t_embedder.mlp.0": ("t_embedder.mlp.0",),
        "t_embedder.mlp.2": ("t_embedder.mlp.2",),
        "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    }

    @classmethod
    def check(cls, pipeline: Any) -> None:
        super().check(pipeline)
        check_template(pipeline.tokenizer)

    @staticmethod
    def shape_of_states(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int, int]:
        config, factor = pipeline.transformer.config, pipeline.vae_scale_factor
        own = (SIDE // factor, SIDE // factor)
        height, width = sides(own, factor, sampler, PATCH)
        places, rows, columns = config["axes_lens"]
        check_places(sampler.max_sequence_length or ZImage.reads_tokens, places)
        check_positions((height, width), (PATCH * rows, PATCH * columns), factor)
        return int(config["in_channels"]), height, width

    def schedule(self) -> FlowSchedule:
        config = self.pipeline.scheduler.config
        _, height, width = self.shape_of_states(self.pipeline, self._sampler)
        tokens = (height // PATCH) * (width // PATCH)
        return FlowSchedule(config, "even", shift_by_tokens(config, tokens))

    def encode(self, prompt: str) -> Condition:
        length = self.sequence_length
        if self.device.type == "meta":
            return self.longest_prompt()
        found, _ = self.pipeline.encode_prompt(
            prompt, self.device, False, max_sequence_length=length
        )
        return PaddedCondition.of(found[0], length)

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert isinstance(condition, PaddedCondition)
        assert condition.hidden is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        rows = zip(condition.hidden.to(dtype), condition.lengths(), strict=True)
        output = network(
            list(x.to(dtype).unsqueeze(2)),  # each an image of one frame
            (1000 - timestep) / 1000,
            [hidden[:length] for hidden, length in rows],
            return_dict=False,
        )[0]
        return -torch.stack(output).squeeze(2)

    def stock_call(self, prompt: str) -> dict[str, Any]:
        return super().stock_call(prompt) | {"guidance_scale": self.guidance_scale - 1.0}


def check_places(tokens: int, places: int) -> None:
    """Refuse prompts of so many tokens that the image, which comes after them, has no place.

    Args:
        places: that the network has for the two, one behind the other.

    Raises:
        UserError: the longest prompt leaves none.
    """
    padded = -(-tokens // MULTIPLE) * MULTIPLE
    if padded + 1 >= places:
        most = (places - 2) // MULTIPLE * MULTIPLE
        raise UserError(
            f"sampler.max_sequence_length: {tokens} tokens, in steps of {MULTIPLE}, and the image "
            f"after them are more than the {places} places of its transformer (axes_lens); "
            + (f"use {most}" if most else "use a model that has more")
        )
