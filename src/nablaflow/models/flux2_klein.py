"""FLUX.2-klein: any folder or hub id of a `Flux2KleinPipeline`, the base model or the distilled.

The base model is guided by the empty prompt. The distilled one (``is_distilled`` in its index) was
made for a few steps and takes no guidance; the reference is that model as it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.flow_schedule import FlowSchedule
from nablaflow.errors import UserError
from nablaflow.models.condition import Condition
from nablaflow.models.flow_matching import TARGETS, FlowMatching, in_blocks, those_in
from nablaflow.models.kohya import Layout
from nablaflow.models.parts import check_template
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.typing import Images, Latents

DEEPEST = 27  # layer of the language model that the stock pipeline reads
PATCH = 2  # the autoencoder's latents on each side of a state's


class Flux2Klein(FlowMatching):
    """A language model for the tokens; states are patches of latents, normalised by statistics."""

    serves = (Flux2KleinPipeline,)
    call_defaults: ClassVar[dict[str, Any]] = {
        "name": "euler",
        "steps": 50,
        "guidance_scale": 4.0,
    }
    reads = PipelineModel.reads | {"guidance_scale", "max_sequence_length"}
    reads_tokens = 512
    templated = True
    reads_layers = 3
    scales = shifts = ()  # its latents' statistics are weights
    published_layers: ClassVar[Layout | None] = {
        **in_blocks(
            "double_blocks",
            "transformer_blocks",
            {
                "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "img_attn.proj": ("attn.to_out.0",),
                "img_mlp.0": ("ff.linear_in",),
                "img_mlp.2": ("ff.linear_out",),
                "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "txt_attn.proj": ("attn.to_add_out",),
                "txt_mlp.0": ("ff_context.linear_in",),
                "txt_mlp.2": ("ff_context.linear_out",),
            },
        ),
        **in_blocks(
            "single_blocks",
            "single_transformer_blocks",
            {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
        ),
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "final_layer.linear": ("proj_out",),
    }

    def __init__(
        self,
        pipeline: Any,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        super().__init__(pipeline, sampler, adapter, device)
        height, width = self.image_size
        self.image_size = (PATCH * height, PATCH * width)

    @classmethod
    def check(cls, pipeline: Any) -> None:
        super().check(pipeline)
        check_template(pipeline.tokenizer)
        layers = pipeline.text_encoder.config.num_hidden_layers
        if layers < DEEPEST:
            raise UserError(
                f"model: the hidden states of layer {DEEPEST} of its text encoder are read, which "
                f"has {layers}; use that of the model it comes from"
            )

    @classmethod
    def _check_read(cls, pipeline: Any, sampler: SamplerSettings) -> None:
        super()._check_read(pipeline, sampler)
        if pipeline.config.is_distilled and sampler.guidance_scale != 1.0:
            raise UserError(
                "sampler.guidance_scale: a distilled FLUX.2-klein takes no guidance; use 1, or the "
                "base model"
            )

    @classmethod
    def defaults_of(cls, pipeline: Any) -> dict[str, Any]:
        few = {"name": "euler", "steps": 4}
        return few if pipeline.config.is_distilled else super().defaults_of(pipeline)

    @staticmethod
    def shape_of_states(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int, int]:
        height, width = FlowMatching.latent_sides(pipeline, sampler, PATCH)
        return int(pipeline.transformer.config["in_channels"]), height // PATCH, width // PATCH

    @staticmethod
    def channels_of_latents(config: Any) -> int:
        return config["latent_channels"] * PATCH**2

    def schedule(self) -> FlowSchedule:
        _, height, width = self.shape_of_states(self.pipeline, self._sampler)
        mu = compute_empirical_mu(height * width, self._sampler.steps)
        return FlowSchedule(self.pipeline.scheduler.config, "even", mu)

    @staticmethod
    def lora_targets(network: Any) -> list[str]:
        # Of the single blocks, attention and feed-forward are one layer.
        return those_in(network, (*TARGETS, "to_qkv_mlp_proj"))

    def encode(self, prompt: str) -> Condition:
        length = self.sequence_length
        found = self.pipeline.encode_prompt(prompt, self.device, 1, max_sequence_length=length)
        return Condition(found[0])

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert condition.hidden is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        rows, tokens, _ = condition.hidden.shape
        _, _, height, width = x.shape
        output = network(
            hidden_states=x.flatten(2).transpose(1, 2).to(dtype),
            timestep=timestep / 1000,
            guidance=None,
            encoder_hidden_states=condition.hidden.to(dtype),
            txt_ids=_positions(1, 1, tokens).to(x.device).expand(rows, -1, -1),
            img_ids=_positions(height, width, 1).to(x.device).expand(rows, -1, -1),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (height, width))

    def to_autoencoder(self, x0: Latents) -> Float[Tensor, "batch latent height width"]:
        statistics = self._autoencoder.bn
        variance = statistics.running_var + self._autoencoder.config["batch_norm_eps"]
        mean, deviation = (v.view(1, -1, 1, 1) for v in (statistics.running_mean, variance.sqrt()))
        return torch.nn.functional.pixel_shuffle(x0 * deviation + mean, PATCH)

    # --- in stock form ----------------------------------------------------------------------------

    @torch.no_grad()
    def stock_image(self, pipeline: Any, prompt: str, **options: Any) -> Images:
        latents = self.call_stock(pipeline, prompt, output_type="latent", **options)
        return self.pixels_of(latents.float())  # normalised and unpatched already


def _positions(rows: int, columns: int, tokens: int) -> Tensor:
    """(0, row, column, token) of each patch of an image, or of each token of a prompt."""
    one = torch.zeros(1, dtype=torch.long)
    return torch.cartesian_prod(one, *(torch.arange(n) for n in (rows, columns, tokens)))[None]
