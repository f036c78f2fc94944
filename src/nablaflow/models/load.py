"""Finds a model: the embedded one, a diffusers folder, or a hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from transformers.utils import logging as transformers_logging

from nablaflow.errors import UserError
from nablaflow.models.ddpm import UnconditionalDDPM
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.models.stable_diffusion import StableDiffusion

FAMILIES: dict[type[Any], type[PipelineModel]] = {
    StableDiffusionPipeline: StableDiffusion,
    DDPMPipeline: UnconditionalDDPM,
}
"""Adding a family is one file and one line here."""


def _check_folder(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"model: {folder} is not a diffusers folder (it has no model_index.json); "
            "save a pipeline there with save_pretrained, or give a hub id"
        )
    try:
        parts = json.loads(index.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"model: {index} cannot be read ({error}); save the model again") from error
    if not isinstance(parts, dict):
        raise UserError(f"model: {index} holds no list of parts; save the model again")
    for part, kind in parts.items():
        wanted = isinstance(kind, list) and kind[0] is not None
        optional = part in ("safety_checker", "feature_extractor", "image_encoder")
        if wanted and not optional and not (folder / part).is_dir():
            raise UserError(f"model: {folder} has no {part} folder; copy the whole model")


def load_pipeline(model: str, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """A diffusers pipeline from a folder or a hub id; safetensors only, no remote code.

    Raises:
        UserError: it is missing, truncated, or not of a supported family.
    """
    folder = Path(model).expanduser()
    looks_local = folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1
    if looks_local:
        if not folder.is_dir():
            raise UserError(f"model: there is no folder {model}; check the path, or give a hub id")
        _check_folder(folder)
    source = str(folder) if looks_local else model
    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            source, torch_dtype=dtype, use_safetensors=True, **_without_checker(source)
        )
    except Exception as error:  # the libraries raise many kinds for one cause: unreadable files
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model: {model} cannot be loaded ({reason}); get it again") from error
    if type(pipeline) not in FAMILIES:
        known = ", ".join(kind.__name__ for kind in FAMILIES)
        raise UserError(f"model: a {type(pipeline).__name__} is not supported; use one of {known}")
    return pipeline


def _without_checker(source: str) -> dict[str, Any]:
    """Leave out what is not needed and often not there: the checker of a Stable Diffusion."""
    config: Any = DiffusionPipeline.load_config(source)
    if config.get("_class_name") != StableDiffusionPipeline.__name__:
        return {}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def load_model(
    pipeline: Any, sampler: SamplerSettings, adapter: AdapterSettings, device: torch.device
) -> PipelineModel:
    """The pipeline as a model to align."""
    return FAMILIES[type(pipeline)](pipeline, sampler, adapter, device)
