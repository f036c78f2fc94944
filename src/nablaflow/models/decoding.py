"""Models whose states are an autoencoder's latents: images of them, and decoders for gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from nablaflow.devices import without_autocast
from nablaflow.errors import UserError
from nablaflow.models.decoder_precision import PRECISIONS, decoder_in, images_by
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.small_decoder import embedded_decoder, load_small_decoder
from nablaflow.typing import Images, Latents


class LatentModel(PipelineModel):
    """What the families with an autoencoder share.

    Attributes:
        small_decoder: hub id of an AutoencoderTiny for the family's latents; None: none is known.
        small_decoder_scale: ``scaling_factor`` of the autoencoder whose latents it was trained on.
    """

    small_decoder: ClassVar[str | None] = None
    small_decoder_scale: ClassVar[float] = 1.0

    def _take_autoencoder(self, autoencoder: Any) -> None:
        # Rewards look at pixels: the decoder stays in float32 whatever the denoiser's precision.
        self._autoencoder: Any = autoencoder.float().eval().requires_grad_(False)
        for part in self._autoencoder.modules():
            if isinstance(part, torch.nn.Conv2d):  # a film's autoencoder has others besides
                flat: Any = part
                flat.to(memory_format=torch.channels_last)
        self._small_decoder: Any = None
        self._training_decoder: Any = None

    def checkpoint_activations(self) -> None:
        """The decoder's too: in float32, under a reward's gradient, they are the largest."""
        super().checkpoint_activations()
        for autoencoder in (self._autoencoder, self._training_decoder):
            if autoencoder is not None:
                autoencoder.enable_gradient_checkpointing()

    # --- its images -------------------------------------------------------------------------------

    def decode(self, x0: Latents) -> Images:
        with without_autocast(x0.device):
            return self.pixels_of(self.to_autoencoder(x0.float()))

    def pixels_of(self, latents: Latents) -> Images:
        """The autoencoder's latents as images in [0, 1]."""
        return in_unit_range(self._decoded(self._autoencoder, latents))

    @staticmethod
    def _decoded(autoencoder: Any, latents: Latents) -> Images:
        return autoencoder.decode(latents, return_dict=False)[0]

    def to_autoencoder(self, x0: Latents) -> Latents:
        """Clean states in the units of the autoencoder's latents."""
        return x0 / self._autoencoder.config["scaling_factor"]

    @property
    def decoded_floats(self) -> int:
        """What the decoder's last layer reads, and what the activation before it made that of."""
        last = getattr(getattr(self._autoencoder, "decoder", None), "conv_out", None)
        height, width = self.image_size
        return super().decoded_floats if last is None else 2 * last.in_channels * height * width

    # --- where a run trains -----------------------------------------------------------------------

    @property
    def has_decoder(self) -> bool:
        return True

    def check_decoder_in(self, precision: str) -> None:
        if precision == "fp16" and self.decoder_is_raised:
            raise UserError(
                "training.decoder_precision: the model's autoencoder says that fp16 is too narrow "
                "for it (force_upcast in its config.json); use bf16 or float32"
            )

    def use_decoder_in(self, precision: str) -> None:
        self.check_decoder_in(precision)
        self.decoder_precision = precision
        if precision in PRECISIONS:
            self._training_decoder = decoder_in(PRECISIONS[precision], self._autoencoder)

    def decode_in_training(self, x0: Latents) -> Images:
        half = self._training_decoder
        if half is None:
            return self.decode(x0)
        with without_autocast(x0.device):
            latents = self.to_autoencoder(x0.float())
            return in_unit_range(images_by(half, latents, self._decoded))

    def decode_for_gradient(self, x0: Latents) -> Images:
        small = self._small_decoder
        if small is None:
            return self.decode_in_training(x0)
        with without_autocast(x0.device):
            pixels = self._decoded(small, in_units_of(small, x0.float()))
        return in_unit_range(pixels)

    @property
    def has_small_decoder(self) -> bool:
        return self._small_decoder_source() is not None

    def _small_decoder_source(self) -> str | None:
        """Folder or hub id of the small decoder for these very latents; None: none is known."""
        embedded = embedded_decoder(self._autoencoder)
        if embedded is not None:
            return str(embedded)
        return self.small_decoder if self._latents_scale == self.small_decoder_scale else None

    @property
    def _latents_scale(self) -> float:
        return float(self._autoencoder.config.get("scaling_factor", 1.0))

    def check_small_decoder(self) -> None:
        if self.small_decoder is not None and not self.has_small_decoder:
            raise UserError(
                f"training.decoder: {self.small_decoder} is for latents scaled by "
                f"{self.small_decoder_scale:g}, and this model's autoencoder scales its own by "
                f"{self._latents_scale:g}; no tiny decoder is known for them, use "
                "training.decoder=full"
            )
        super().check_small_decoder()

    def use_small_decoder(self) -> None:
        self.check_small_decoder()
        source = self._small_decoder_source()
        assert source is not None
        channels, factor = (
            self._autoencoder.config["latent_channels"],
            self.pipeline.vae_scale_factor,
        )
        found = load_small_decoder(source, channels, factor)
        self._small_decoder = found.to(self.device)

    # --- in a precision of its pipeline's ---------------------------------------------------------

    @torch.no_grad()
    def overflows(self, x0: Latents, dtype: torch.dtype) -> bool:
        decoder = decoder_in(dtype, self._autoencoder)
        images = images_by(decoder, self.to_autoencoder(x0.float()), self._decoded)
        return not bool(images.isfinite().all())


def in_unit_range(pixels: Images) -> Images:
    """Pixels in [-1, 1] as those in [0, 1], cut to it."""
    return (pixels / 2 + 0.5).clamp(0.0, 1.0)


def in_units_of(autoencoder: Any, x0: Latents) -> Latents:
    """Clean states as the latents of an autoencoder with a shift, or of a small one."""
    config = autoencoder.config
    return x0 / config["scaling_factor"] + (config.get("shift_factor") or 0.0)


def with_statistics(config: Mapping[str, Any], x0: Latents) -> Latents:
    """Clean states with the mean and the standard deviation that an autoencoder's latents have."""
    mean, deviation = (x0.new_tensor(config[f"latents_{name}"]) for name in ("mean", "std"))
    return x0 * deviation.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)
