"""A small decoder for a reward's gradient: an AutoencoderTiny, trained for a family's latents.

Its images are near the autoencoder's, their gradients less so: `benchmarks/decoders.py` tells how
near, and what is saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from nablaflow.errors import UserError
from nablaflow.hub import fetch_folder, is_local
from nablaflow.quiet import quiet_libraries

FIELD = "training.decoder: tiny"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@quiet_libraries()
def load_small_decoder(source: str, channels: int, factor: int) -> Any:
    """The decoder at a folder or a hub id, float32 and constant.

    Args:
        channels: of the latents that it has to read.
        factor: pixels on a side of one of them.

    Raises:
        UserError: it is not there, is no whole AutoencoderTiny, or is for other latents.
    """
    folder = _folder(source)
    try:
        config: Any = AutoencoderTiny.load_config(folder)
        loaded: Any = AutoencoderTiny.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # of a file that is not what its name says
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{FIELD}: {source} cannot be loaded ({reason}); get it again, or use "
            "training.decoder=full"
        ) from error
    found, left = loaded
    if config.get("_class_name") != AutoencoderTiny.__name__ or left["missing_keys"]:
        raise UserError(f"{FIELD}: {source} is no whole AutoencoderTiny; get it again")
    config = found.config
    scale = config["upsampling_scaling_factor"] ** (len(config["decoder_block_out_channels"]) - 1)
    if (config["latent_channels"], scale) != (channels, factor):
        raise UserError(
            f"{FIELD}: {source} makes {scale} pixels of a latent of {config['latent_channels']} "
            f"channels, and the model's have {channels} and make {factor}; use "
            "training.decoder=full"
        )
    found.encoder = None  # of no use here
    return found.eval().requires_grad_(False)


def _folder(source: str) -> Path:
    """Where its files are, fetched from the hub if need be."""
    if is_local(source):
        return fetch_folder(source, FILES, local=source, field=FIELD)
    try:
        return fetch_folder(source, FILES, field=None)
    except UserError as error:
        raise UserError(f"{FIELD}: {error}; or use training.decoder=full") from error
