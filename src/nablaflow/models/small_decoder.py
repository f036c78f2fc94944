"""A small decoder for a reward's gradient: an AutoencoderTiny, trained for a family's latents.

Its images are near the autoencoder's, their gradients less so: `benchmarks/decoders.py` tells how
near, and what is saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import safe_open
from torch import Tensor

from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.hub import fetch_folder, is_local
from nablaflow.quiet import quiet_libraries
from nablaflow.storage.written import check_checksums

FIELD = "training.decoder: tiny"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")
BUILT = ("block_out_channels", "layers_per_block", "latent_channels", "scaling_factor")
PARTS = ("decoder.", "post_quant_conv.")
ROUNDED = 2.0**-8  # of a weight, by bf16


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
    check_checksums(folder, field=FIELD)
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


def embedded_decoder(autoencoder: Any) -> Path | None:
    """Folder of the small decoder that ships, where an autoencoder is the embedded models'.

    Of shapes alone it is one if it is built as theirs; else by the decoder's weights, which half
    precision may have rounded.
    """
    config: Any = AutoencoderKL.load_config(nano.path(), subfolder="vae")
    if any(autoencoder.config.get(key) != value for key, value in config.items() if key in BUILT):
        return None
    own = autoencoder.state_dict()
    with safe_open(nano.path() / "vae" / FILES[1], "pt") as weights:
        names = [name for name in weights.keys() if name.startswith(PARTS)]  # noqa: SIM118
        return nano.decoder_path() if all(_near(own, weights, name) for name in names) else None


def _near(own: dict[str, Tensor], weights: Any, name: str) -> bool:
    if name not in own or own[name].is_meta:
        return name in own
    shipped = weights.get_tensor(name).float()
    return torch.allclose(own[name].cpu().float(), shipped, rtol=ROUNDED, atol=1e-7)


def _folder(source: str) -> Path:
    """Where its files are, fetched from the hub if need be."""
    if is_local(source):
        return fetch_folder(source, FILES, local=source, field=FIELD)
    try:
        return fetch_folder(source, FILES, field=None)
    except UserError as error:
        raise UserError(f"{FIELD}: {error}; or use training.decoder=full") from error
