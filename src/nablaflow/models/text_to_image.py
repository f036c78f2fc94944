"""Latent diffusion conditioned on text: embeddings, guidance and the autoencoder."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, ClassVar

import torch

from nablaflow.models.condition import Condition
from nablaflow.models.conditioning import check_clip_skip
from nablaflow.models.cut_prompts import Reader, called, is_silent, note_cuts, note_negative
from nablaflow.models.decoding import LatentModel
from nablaflow.models.embeddings import Embeddings
from nablaflow.models.parts import (
    check_decoder,
    check_latents,
    check_lengths,
    check_scales,
    check_words,
)
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.models.sizes import latent_size
from nablaflow.models.source import fingerprint_of
from nablaflow.models.stored_embeddings import StoredEmbeddings, described
from nablaflow.quiet import quiet_libraries
from nablaflow.typing import Images


class TextToImage(LatentModel):
    """What the families with text encoders and an autoencoder share.

    Attributes:
        heavy_from: parameters of text encoders whose embeddings are kept on disk.
        tokenizers: names of the parts that read a prompt, the most restricted first.
        cut_by_first: whether each CLIP is given as many tokens as the first tokenizer's length.
        scales: the autoencoder's settings that its latents are divided by.
        shifts: and those that are added.
    """

    heavy_from: ClassVar[int] = 10**9
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    cut_by_first: ClassVar[bool] = False
    scales: ClassVar[tuple[str, ...]] = ("scaling_factor",)
    shifts: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[frozenset[str]] = PipelineModel.reads | {"guidance_scale", "negative_prompt"}

    def __init__(
        self,
        pipeline: Any,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        super().__init__(pipeline, sampler, adapter, device)
        check_words(pipeline, self.tokenizers, self.encoders)
        check_lengths(pipeline, self.tokenizers, self.encoders, by_first=self.cut_by_first)
        check_decoder(pipeline.vae)
        config = pipeline.vae.config
        check_latents(self.denoiser, self.state_shape[0], self.channels_of_latents(config))
        check_scales(config, self.scales, self.shifts)
        self._take_autoencoder(pipeline.vae)
        for encoder in self._encoders():
            encoder.eval().requires_grad_(False)
        self._rest = device  # of the encoders while they have nothing to do
        _, height, width = self.state_shape
        factor = pipeline.vae_scale_factor
        self.image_size = (height * factor, width * factor)
        stored = StoredEmbeddings(self._embeddings_depend_on) if self._keeps_embeddings() else None
        self._embeddings = Embeddings(self.encode, self._encoders_at_work, stored=stored)
        self._other_end: Condition | None = None

    @staticmethod
    def shape_of_states(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int, int]:
        height, width = latent_size(pipeline.unet, pipeline.vae_scale_factor, sampler)
        return int(pipeline.unet.config["in_channels"]), height, width

    @staticmethod
    def channels_of_latents(config: Any) -> int:
        """Channels of a state, by the autoencoder's configuration."""
        return config["latent_channels"]

    @classmethod
    def _check_read(cls, pipeline: Any, sampler: SamplerSettings) -> None:
        super()._check_read(pipeline, sampler)
        encoders = [getattr(pipeline, name, None) for name in cls.encoders]
        check_clip_skip(encoders, sampler.clip_skip)

    # --- prompts ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def encode(self, prompt: str) -> Condition:
        """One row: the embeddings of a prompt; called without a graph."""

    def encode_negative(self, prompt: str) -> Condition:
        """The same for the other end of the guidance."""
        return self.encode(prompt)

    def condition(self, prompts: list[str]) -> Condition:
        found = self._embeddings(prompts, self.device)
        if self.guidance_scale == 1.0:
            return found
        return found.with_negative(self._negative().expand(len(prompts)))

    def _negative(self) -> Condition:
        if self._other_end is None:
            with self._encoders_at_work():
                self._other_end = self.encode_negative(self._sampler.negative_prompt)
        return self._other_end

    @property
    def heavy_encoders(self) -> bool:
        """Whether an embedding is worth a file, and memory of an accelerator not worth keeping."""
        sizes = [value.numel() for part in self._encoders() for value in part.parameters()]
        return sum(sizes) >= self.heavy_from

    def _keeps_embeddings(self) -> bool:
        return self.heavy_encoders and self.device.type != "meta"  # where there are shapes alone

    def _embeddings_depend_on(self) -> list[Any]:
        names = [name for name in self.encoders if getattr(self.pipeline, name, None) is not None]
        weights = fingerprint_of({name: getattr(self.pipeline, name) for name in names})
        configs = [getattr(self.pipeline, name).config.to_json_string() for name in names]
        words = [getattr(self.pipeline, name, None) for name in self.tokenizers]
        known = [described(one) for one in words if one is not None]
        tokens = hashlib.sha256(json.dumps([configs, known]).encode()).hexdigest()
        s = self._sampler
        read = [s.clip_skip, s.prompt_chunks, s.max_sequence_length]
        libraries = [version(name) for name in ("nablaflow", "diffusers", "transformers")]
        return [type(self).__name__, weights, tokens, read, self.device.type, libraries]

    @contextmanager
    def _encoders_at_work(self) -> Iterator[None]:
        for encoder in self._encoders():
            encoder.to(self.device)
        try:
            with torch.no_grad(), quiet_libraries():  # what is cut is said once, by `note_on`
                yield
        finally:
            self._rest_encoders()

    def _rest_encoders(self) -> None:
        for encoder in self._encoders():
            encoder.to(self._rest)

    def _encoders(self) -> list[Any]:
        parts = (getattr(self.pipeline, name, None) for name in self.encoders)
        return [part for part in parts if part is not None]

    def offload_encoders(self) -> None:
        self._rest = torch.device("cpu")
        self._rest_encoders()

    def note_on(self, prompts: Sequence[str], *, trains: bool = True) -> str | None:
        readers, s = self.readers(), self._sampler
        guided = s.guidance_scale > 1.0
        negative = note_negative(readers, s.negative_prompt, guided=guided, settable=trains)
        steps = super().note_on(prompts, trains=trains)
        notes = self.notes() if trains else []
        told = (steps, *notes, note_cuts(readers, prompts, settable=trains), negative)
        return "\n".join(line for line in told if line is not None) or None

    def notes(self) -> list[str]:
        """What is to be said of the model and its sampler where it trains, one line each."""
        return []

    def readers(self) -> list[Reader]:
        """What reads a prompt; not a text encoder that is silent, whatever it is given."""
        return [
            self.reader(tokenizer, encoder)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
            if self._reads(tokenizer, encoder)
        ]

    def _reads(self, tokenizer: str, encoder: str) -> bool:
        parts = (getattr(self.pipeline, name, None) for name in (tokenizer, encoder))
        return None not in parts and not is_silent(getattr(self.pipeline, encoder))

    def reader(self, tokenizer: str, encoder: str) -> Reader:
        """One text encoder, by the names of the parts."""
        words, network = (getattr(self.pipeline, name) for name in (tokenizer, encoder))
        count = self._sampler.prompt_chunks or 1
        return Reader(words, count, name=called(network), part=encoder)

    # --- in stock form ----------------------------------------------------------------------------

    def stock_call(self, prompt: str) -> dict[str, Any]:
        height, width = self.image_size
        call = {"prompt": prompt, "height": height, "width": width}
        call["guidance_scale"] = self.guidance_scale
        if self.guidance_scale > 1.0 and self._sampler.negative_prompt:
            call["negative_prompt"] = self._sampler.negative_prompt
        if self._sampler.clip_skip is not None:
            call["clip_skip"] = self._sampler.clip_skip
        if self.guidance_rescale:
            call["guidance_rescale"] = self.guidance_rescale
        return call

    def call_stock(self, pipeline: Any, prompt: str, **options: Any) -> Any:
        """Likewise; encoders that rest elsewhere leave when the denoiser is asked first."""
        denoiser = getattr(pipeline, self.denoiser)
        leave = denoiser.register_forward_pre_hook(lambda *_: self._rest_encoders())
        try:
            with self._encoders_at_work():
                return super().call_stock(pipeline, prompt, **options)
        finally:
            leave.remove()

    @torch.no_grad()
    def stock_image_by_its_own_decoder(self, pipeline: Any, prompt: str, **options: Any) -> Images:
        return self.call_stock(pipeline, prompt, output_type="pt", **options).float()
