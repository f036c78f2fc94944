"""What a run asks of a model's decoder, as a model without one answers it."""

from __future__ import annotations

from typing import Any

import torch

from nablaflow.errors import UserError
from nablaflow.models.contract import DiffusionModel
from nablaflow.typing import Latents


class DecodesImages(DiffusionModel):
    """A model whose states are pixels, unless a subclass says otherwise.

    Attributes:
        pipeline: that it lives in.
        decoder_precision: in which an update's images are decoded, see `decode_in_training`.
    """

    pipeline: Any
    decoder_precision: str = "float32"

    @property
    def has_decoder(self) -> bool:
        """Whether images are made of states by a network, in a precision of its own."""
        return False

    @property
    def has_small_decoder(self) -> bool:
        """Whether a small decoder for the latents that this model has is known."""
        return False

    def check_small_decoder(self) -> None:
        """Refuse to take rewards' gradients through a small decoder where there is none.

        Raises:
            UserError: none is known for the family, or for the latents of its autoencoder.
        """
        if not self.has_small_decoder:
            raise UserError(
                f"training.decoder: no tiny decoder is known for a {type(self.pipeline).__name__}; "
                "use training.decoder=full"
            )

    def use_small_decoder(self) -> None:
        """From now on take rewards' gradients through a small decoder, see `decode_for_gradient`.

        Raises:
            UserError: there is none, see `check_small_decoder`, or it cannot be loaded.
        """
        self.check_small_decoder()

    def check_decoder_in(self, precision: str) -> None:
        """Refuse a precision of the decoder that this model's does not have.

        Args:
            precision: ``float32``, ``bf16`` or ``fp16``.

        Raises:
            UserError: its own configuration says that it is too narrow, or nothing is decoded.
        """
        if precision != "float32" and not self.has_decoder:
            raise UserError(
                f"training.decoder_precision: a {type(self.pipeline).__name__} has no decoder; "
                "leave it out"
            )

    def use_decoder_in(self, precision: str) -> None:
        """From now on decode in it what an update is made of, see `decode_in_training`.

        Raises:
            UserError: see `check_decoder_in`.
        """
        self.check_decoder_in(precision)

    @property
    def decoded_floats(self) -> int:
        """Numbers that decoding one image has in memory at once, at the very least."""
        height, width = self.image_size
        return 3 * height * width

    @property
    def decoder_is_raised(self) -> bool:
        """Whether a stock pipeline in fp16 decodes in float32 all the same."""
        return False

    def overflows(self, x0: Latents, dtype: torch.dtype) -> bool:
        """Whether the pipeline's own decoder, float32 here, is not finite in a precision."""
        return False
