"""Families that predict a velocity with a transformer: what they share."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from nablaflow.diffusion.flow_schedule import FlowSchedule
from nablaflow.diffusion.prediction import FLOW
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.diffusion.samplers import build_process
from nablaflow.errors import UserError
from nablaflow.models.condition import PaddedCondition
from nablaflow.models.cut_prompts import Reader, called
from nablaflow.models.decoding import in_units_of
from nablaflow.models.kohya import Layout
from nablaflow.models.long_prompts import before
from nablaflow.models.parts import check_read_width
from nablaflow.models.settings import MOST_TOKENS, AdapterSettings, SamplerSettings
from nablaflow.models.sizes import sides
from nablaflow.models.text_to_image import TextToImage
from nablaflow.typing import Latents

EULER = "FlowMatchEuler"
"""How the names of the schedulers begin that take `euler`'s steps."""
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
"""The projections of attention, of image and text tokens (as in arXiv 2505.05470's code)."""


def those_in(network: Any, targets: Sequence[str]) -> list[str]:
    """The targets of a LoRA that a transformer has a layer for."""
    names = [name for name, _ in network.named_modules()]
    return [target for target in targets if any(n.endswith(f".{target}") for n in names)]


def in_blocks(published: str, own: str, layers: Layout) -> Layout:
    """The layout of the blocks of a transformer, from that of one block.

    Args:
        published: what the checkpoint calls the list of blocks; ``own`` is diffusers' name.
    """
    return {
        f"{published}.{{}}.{layer}": tuple(f"{own}.{{}}.{part}" for part in parts)
        for layer, parts in layers.items()
    }


class FlowMatching(TextToImage):
    """A text-to-image transformer of flow matching, in its pipeline.

    A state is x_s / n_s (`nablaflow.diffusion.flow_schedule`), of the shape that the stock pipeline
    draws its noise in.

    Attributes:
        reads_tokens: of a prompt, by the last of the tokenizers: the pipeline's default.
        reads_width: the transformer's name for the width of their embeddings.
        reads_layers: of the last text encoder, whose hidden states stand side by side.
        templated: whether the tokens that are read begin with those of a chat's template.
    """

    denoiser: ClassVar[str] = "transformer"
    shifts: ClassVar[tuple[str, ...]] = ("shift_factor",)
    reads: ClassVar[frozenset[str]] = TextToImage.reads | {"max_sequence_length"}
    reads_tokens: ClassVar[int]
    reads_width: ClassVar[str] = "joint_attention_dim"
    reads_layers: ClassVar[int] = 1
    templated: ClassVar[bool] = False

    def __init__(
        self,
        pipeline: Any,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        super().__init__(pipeline, sampler, adapter, device)
        self.parameterization = FLOW

    @classmethod
    def check(cls, pipeline: Any) -> None:
        transformer = pipeline.transformer
        if cls.channels_out(transformer.config) != transformer.config["in_channels"]:
            raise UserError(
                "model: its transformer does not return what it is given (inpainting or control); "
                "use a text-to-image model"
            )
        if any(isinstance(part, BaseTunerLayer) for part in transformer.modules()):
            raise UserError(
                "model: its transformer carries a LoRA; call fuse_lora() and unload_lora_weights() "
                "on the pipeline first"
            )

        encoder = getattr(pipeline, cls.encoders[-1])
        if encoder is not None:
            text = getattr(encoder.config, "text_config", encoder.config)
            given = cls.reads_layers * text.hidden_size
            check_read_width("prompts", transformer.config[cls.reads_width], given)

    @staticmethod
    def channels_out(config: Any) -> int:
        """Channels that the transformer returns, as it counts those that it is given.

        It is given tokens, and returns squares of ``patch_size``.
        """
        return (config.get("out_channels") or config["in_channels"]) * config.get(
            "patch_size", 1
        ) ** 2

    # --- its states, its kernels, its policy ------------------------------------------------------

    @staticmethod
    def latent_sides(pipeline: Any, sampler: SamplerSettings, patch: int) -> tuple[int, int]:
        """(height, width) of the autoencoder's latents, a multiple of the transformer's patch."""
        default = pipeline.default_sample_size
        return sides((default, default), pipeline.vae_scale_factor, sampler, patch)

    @abc.abstractmethod
    def schedule(self) -> FlowSchedule:
        """The scheduler, with what the stock pipeline tells it at this size."""

    def make_process(self, left_open: Float[Tensor, "levels"] | None) -> ReverseProcess:
        s = self._sampler
        return build_process(self.schedule(), s.name, s.steps, s.eta, s.sigma_floor, left_open)

    @staticmethod
    def lora_targets(network: Any) -> list[str]:
        return those_in(network, TARGETS)

    def to_autoencoder(self, x0: Latents) -> Latents:
        return in_units_of(self._autoencoder, x0)

    # --- prompts ----------------------------------------------------------------------------------

    @property
    def sequence_length(self) -> int:
        """Tokens that the last of the text encoders gives, or would give if it were there."""
        return self._sampler.max_sequence_length or self.reads_tokens

    def longest_prompt(self) -> PaddedCondition:
        """A row of shapes alone, which do not say how long a prompt is: the most that is read."""
        length = self.sequence_length
        width = self.pipeline.transformer.config[self.reads_width]
        return PaddedCondition.of(torch.zeros(length, width, device=self.device), length)

    def stock_call(self, prompt: str) -> dict[str, Any]:
        return super().stock_call(prompt) | {"max_sequence_length": self.sequence_length}

    def notes(self) -> list[str]:
        name, own = self._sampler.name, type(self.pipeline.scheduler).__name__
        if name not in ("flow-grpo", "euler"):
            return []
        others = (
            f"sampler.name: the model's own scheduler, {own}, takes other steps than euler, so "
            "that a stock pipeline's images are others"
        )
        told = (
            f"sampler.name: with {name} an image depends on the noise it began with, so that what "
            "a method aims at is not the tilt of the images; sampler.name=memoryless makes it so"
        )
        return [told, others] if name == "euler" and not own.startswith(EULER) else [told]

    def reader(self, tokenizer: str, encoder: str) -> Reader:
        """The last reads as many tokens as it is asked for, whatever its tokenizer's own length."""
        words, network = (getattr(self.pipeline, name) for name in (tokenizer, encoder))
        name = called(network)
        if tokenizer != self.tokenizers[-1]:
            first = self.tokenizers[0] if self.cut_by_first else tokenizer
            length = getattr(self.pipeline, first).model_max_length
            return Reader(words, reads=length, name=name, part=encoder)
        template, length = before(words) if self.templated else 0, self.sequence_length
        return Reader(words, 1, length, template, MOST_TOKENS, name, encoder)
