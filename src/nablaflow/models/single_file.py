"""A model as one file of weights, as ComfyUI and A1111 have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import SafetensorError, safe_open

from nablaflow.errors import UserError

PREFIX = "model.diffusion_model."
"""Before the names of a denoiser that is not alone in its file."""
NO_WEIGHTS = (".yaml", ".yml", ".json", ".jsonl", ".txt", ".md", ".csv", ".py", ".png", ".jpg")


def load_single_file(path: Path, dtype: torch.dtype, of_decoder: torch.dtype) -> Any:
    """The Stable Diffusion 1, 2, XL or 3 in a ``.safetensors``, if its configuration is here.

    The file has none of its own; diffusers takes that of the published model it resembles from the
    hub's cache on this machine, or from the hub.

    Args:
        of_decoder: precision of the autoencoder.

    Raises:
        UserError: it is another thing, or its configuration could not be downloaded.
    """
    if path.suffix == ".gguf":
        raise UserError(
            f"model: {path} is quantized (GGUF), and gradients need weights that are not; give a "
            "folder, or a .safetensors, of the same model"
        )
    if path.suffix.lower() in NO_WEIGHTS:
        raise UserError(f"model: {path} is no file of weights; give a model's folder, or a hub id")
    if path.suffix != ".safetensors":
        raise UserError(
            f"model: {path} is one file that is not safetensors and may hold code; "
            + _convert(path, "where you trust it")
        )
    kinds = _kinds(path)
    names = list(kinds)
    _check_not_quantized(path, kinds)
    _check_whole(path, names)
    kind, options = _kind(path, names)
    given: dict[str, Any] = {"local_files_only": True}
    try:
        if of_decoder != dtype:
            options["vae"] = AutoencoderKL.from_single_file(
                str(path), torch_dtype=of_decoder, **given
            )
        return kind.from_single_file(
            str(path), torch_dtype=dtype, feature_extractor=None, **given, **options
        )
    except Exception as error:  # the libraries raise many kinds for one cause: no configuration
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"model: {path} is one file, and the configuration it needs could not be downloaded "
            f"({reason}); " + _convert(path, "where the hub can be reached", kind.__name__)
        ) from error


SCALES = (
    *("scaled_fp8", ".scale_weight", ".weight_scale", ".weight_scale_2", ".scale_input"),
    *(".input_scale", ".comfy_quant", ".absmax", ".quant_map", ".SCB", ".qweight", ".scales"),
)
"""How names end of what a quantized weight is multiplied by, or is marked with."""
PACKED = ("I8", "U8", "I32")


def _check_not_quantized(path: Path, kinds: Mapping[str, str]) -> None:
    """Refuse weights that are other numbers without their scales, which diffusers leaves out.

    Weights in eight bits without any, as they are, are read.
    """
    name = next((name for name in kinds if name.endswith(SCALES) or ".quant_state." in name), None)
    packed = (n for n, kind in kinds.items() if n.endswith(".weight") and kind in PACKED)
    name = name or next(packed, None)
    if name is not None:
        least = sorted({kind for kind in kinds.values() if kind.startswith(("F8", "I8", "U8"))})
        raise UserError(
            f"model: {path} is quantized ({', '.join(least) or 'by scales'}: {name}), and "
            "gradients need weights that are not; give the same model in bf16, fp16 or float32"
        )


def _check_whole(path: Path, names: list[str]) -> None:
    """Refuse what is no whole model of a kind that is read from one file."""
    if any("lora_" in name for name in names):
        raise UserError(
            f"model: {path} is a LoRA and not a model; fuse it into its base with fuse_lora(), "
            "unload_lora_weights() and save_pretrained, and give that folder"
        )
    transformer = next((one for one in (*TRANSFORMERS, SD3) if one.is_in(names)), None)
    if transformer is SD3 and any(name.startswith("text_encoders.") for name in names):
        return
    if transformer is not None:
        raise UserError(f"model: {path} is {transformer.told(path)}, and give that folder")
    if any(name.startswith(OF_DIFFUSERS) for name in names):
        raise UserError(
            f"model: {path} is one part of a pipeline, by diffusers' names; give the folder with "
            "all of them, the one that has a model_index.json"
        )
    if not any(name.startswith(PREFIX) for name in names):
        raise UserError(
            f"model: {path} is one file without the weights of a Stable Diffusion; if it is a "
            "whole model all the same, " + _convert(path, "where the hub can be reached")
        )


OF_DIFFUSERS = ("down_blocks.", "transformer_blocks.", "single_transformer_blocks.")


@dataclass(frozen=True)
class Transformer:
    """One that is published without the text encoders and the autoencoder that it works with, too.

    Attributes:
        mark: how some of its tensors' names begin, besides `PREFIX`.
        kind: what diffusers' classes begin with.
        source: hub id of a pipeline with its other parts.
    """

    mark: str
    kind: str
    source: str

    def is_in(self, names: list[str]) -> bool:
        return any(name.removeprefix(PREFIX).startswith(self.mark) for name in names)

    def told(self, path: Path) -> str:
        """What it is, and how to make a folder with the rest."""
        network = f"{self.kind}Transformer2DModel"
        pipeline = {"SD3": "StableDiffusion3", "Flux2": "Flux2Klein"}.get(self.kind, self.kind)
        return (
            f"the transformer of a {pipeline}Pipeline; put it beside the other parts once, where "
            f'the hub can be reached: python -c "from diffusers import {pipeline}Pipeline as P, '
            f"{network} as T; P.from_pretrained('{self.source}', "
            f"transformer=T.from_single_file('{path}')).save_pretrained('{path.stem}')\""
        )


TRANSFORMERS = (
    Transformer("distilled_guidance_layer.", "Chroma", "lodestones/Chroma1-HD"),
    Transformer("double_stream_modulation_img.", "Flux2", "black-forest-labs/FLUX.2-klein-4B"),
    Transformer("double_blocks.", "Flux", "black-forest-labs/FLUX.1-dev"),
    Transformer("layers.0.adaLN_modulation.", "ZImage", "Tongyi-MAI/Z-Image-Turbo"),
    Transformer("transformer_blocks.0.img_mlp.", "QwenImage", "Qwen/Qwen-Image"),
)
"""The more particular before what they have in common."""
SD3 = Transformer("joint_blocks.", "SD3", "stabilityai/stable-diffusion-3.5-medium")


def _kind(path: Path, names: list[str]) -> tuple[type[Any], dict[str, Any]]:
    """The pipeline's class, by the names that its published file gives to its parts."""
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return StableDiffusionXLPipeline, {"image_encoder": None, "add_watermarker": False}
    if any(name.startswith("conditioner.embedders.0.") for name in names):
        raise UserError(
            f"model: {path} is a refiner, which only finishes what a base model began; use the "
            "base model"
        )
    if SD3.is_in(names):
        return StableDiffusion3Pipeline, {"image_encoder": None}
    return StableDiffusionPipeline, {"safety_checker": None, "requires_safety_checker": False}


def _kinds(path: Path) -> dict[str, str]:
    """Names of its tensors, and of their dtypes; no weights are read."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_slice(name).get_dtype() for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"model: {path} cannot be loaded ({error}); get it again") from error


def _convert(path: Path, where: str, kind: str = "StableDiffusionPipeline") -> str:
    return (
        f'convert it once, {where}: python -c "from diffusers import {kind} as P; '
        f"P.from_single_file('{path}').save_pretrained('{path.stem}')\", and give that folder"
    )
