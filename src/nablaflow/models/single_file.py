"""A model as one file of weights, as ComfyUI and A1111 have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import SafetensorError, safe_open

from nablaflow.errors import UserError


def load_single_file(path: Path, dtype: torch.dtype) -> Any:
    """The Stable Diffusion, or XL, in a ``.safetensors``, if its configuration is here.

    The file has none of its own; diffusers takes that of the published model it resembles from the
    hub's cache on this machine, or from the hub.

    Raises:
        UserError: it is another thing, or its configuration could not be downloaded.
    """
    if path.suffix != ".safetensors":
        raise UserError(
            f"model: {path} is one file that is not safetensors and may hold code; "
            + _convert(path, "where you trust it")
        )
    names = _names(path)
    if any("lora_" in name for name in names):
        raise UserError(
            f"model: {path} is a LoRA and not a model; fuse it into its base with fuse_lora(), "
            "unload_lora_weights() and save_pretrained, and give that folder"
        )
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise UserError(
            f"model: {path} is one file without the weights of a Stable Diffusion; if it is a "
            "whole model all the same, " + _convert(path, "where the hub can be reached")
        )
    kind, options = _kind(path, names)
    try:
        return kind.from_single_file(
            str(path), torch_dtype=dtype, local_files_only=True, feature_extractor=None, **options
        )
    except Exception as error:  # the libraries raise many kinds for one cause: no configuration
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"model: {path} is one file, and the configuration it needs could not be downloaded "
            f"({reason}); " + _convert(path, "where the hub can be reached", kind.__name__)
        ) from error


def _kind(path: Path, names: list[str]) -> tuple[type[Any], dict[str, Any]]:
    """The pipeline's class, by the names that its published file gives to text encoders."""
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return StableDiffusionXLPipeline, {"image_encoder": None, "add_watermarker": False}
    if any(name.startswith("conditioner.embedders.0.") for name in names):
        raise UserError(
            f"model: {path} is a refiner, which only finishes what a base model began; use the "
            "base model"
        )
    return StableDiffusionPipeline, {"safety_checker": None, "requires_safety_checker": False}


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"model: {path} cannot be loaded ({error}); get it again") from error


def _convert(path: Path, where: str, kind: str = "StableDiffusionPipeline") -> str:
    return (
        f'convert it once, {where}: python -c "from diffusers import {kind} as P; '
        f"P.from_single_file('{path}').save_pretrained('{path.stem}')\", and give that folder"
    )
