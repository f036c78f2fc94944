"""Finds a model: a diffusers folder, a file, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from nablaflow.errors import UserError, show
from nablaflow.models.chroma import Chroma
from nablaflow.models.ddpm import UnconditionalDDPM
from nablaflow.models.flux import Flux
from nablaflow.models.flux2_klein import Flux2Klein
from nablaflow.models.folder import (
    all_safetensors,
    check_files,
    check_is_whole,
    find_variant,
    read_index,
)
from nablaflow.models.from_hub import folder_from_hub, index_on_hub, is_hub_id
from nablaflow.models.fused import WithLora, fuse
from nablaflow.models.live import DECODER, LIVE, LivePipeline, check_has_parts
from nablaflow.models.lora_inside import check_no_adapter_files, check_no_lora_inside
from nablaflow.models.network_files import (
    check_finite,
    check_scheduler_reads,
    load_encoders,
    load_own,
)
from nablaflow.models.parts import check_classes, check_libraries, check_named
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.quantized import Quantized, check_installed, quantize
from nablaflow.models.qwen_image import QwenImage
from nablaflow.models.random_weights import RANDOM, random_by_name
from nablaflow.models.sd3 import StableDiffusion3
from nablaflow.models.sdxl import StableDiffusionXL
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.models.single_file import load_single_file
from nablaflow.models.source import ModelSource
from nablaflow.models.stable_diffusion import StableDiffusion
from nablaflow.models.weight_kinds import check_weight_kinds
from nablaflow.models.z_image import ZImage
from nablaflow.places import at_home
from nablaflow.quiet import quiet_libraries
from nablaflow.storage.written import check_checksums

FAMILIES: list[type[PipelineModel]] = [
    StableDiffusion,
    StableDiffusionXL,
    UnconditionalDDPM,
    StableDiffusion3,
    Flux,
    Flux2Klein,
    ZImage,
    QwenImage,
    Chroma,
]
"""Adding a family is one file and one line here."""


def family_of(pipeline: Any) -> type[PipelineModel]:
    """The family of a pipeline.

    Raises:
        UserError: there is none for its class.
    """
    return _serving(type(pipeline).__name__)[0]


def absent_parts(pipeline: Any) -> tuple[str, ...]:
    """Parts that it does without, as its family allows; diffusers has to be told so to load it."""
    may_lack = family_of(pipeline).may_lack
    return tuple(name for name in may_lack if getattr(pipeline, name, None) is None)


def _serving(name: Any) -> tuple[type[PipelineModel], type[Any]]:
    """The family, and the pipeline's class, by the class's name."""
    served = {kind.__name__: (family, kind) for family in FAMILIES for kind in family.serves}
    if isinstance(name, list):  # a module of the folder's own, and the class in it
        name = show(name)
    if not isinstance(name, str) or not name:
        raise UserError(
            "model: its model_index.json does not say the class of its pipeline (_class_name); "
            "save the model again with save_pretrained"
        )
    if name not in served:
        raise UserError(f"model: a {name} is not supported; use one of {', '.join(served)}")
    return served[name]


def hand_over(pipeline: Any) -> LivePipeline:
    """A pipeline that the user holds, as a source of models to align; it stays as it is.

    Raises:
        UserError: it is none, not of a supported family, or cannot be copied.
    """
    if not isinstance(pipeline, DiffusionPipeline):
        raise UserError(
            f"model: must be a folder, a hub id or a diffusers pipeline, not {show(pipeline)}"
        )
    family = family_of(pipeline)
    check_has_parts(pipeline, {*family.load_options, *family.may_lack})
    options = family.load_options.items()
    return LivePipeline(pipeline, tuple(name for name, part in options if part is None))


@quiet_libraries()
def load_pipeline(
    model: ModelSource | Path, dtype: torch.dtype = torch.float32, *, exact_decoder: bool = False
) -> Any:
    """A diffusers pipeline from a folder, a file or a hub id; no pickle, no remote code.

    Weights in ``.bin`` files are read with ``weights_only``, and only where there are no others.
    One that the user holds gives another around the same weights: see `LivePipeline.borrow`.

    Args:
        exact_decoder: read the autoencoder in float32 whatever ``dtype`` is, without its rounding.

    Raises:
        UserError: it is missing, truncated, or not of a supported family.
    """
    of_decoder = torch.float32 if exact_decoder else dtype
    if isinstance(model, Quantized):
        check_installed()  # before any weights are read
        return in_four_bits(load_pipeline(model.model, dtype, exact_decoder=exact_decoder))
    if isinstance(model, WithLora):
        return _fused(model, dtype, of_decoder)
    if isinstance(model, LivePipeline):
        return model.borrow(dtype, of_decoder)
    if isinstance(model, Path):  # which no hub id is
        model = str(at_home(model).absolute())
    if not isinstance(model, str):
        raise UserError(f"model: must be a folder, a file or a hub id, not {show(model)}")
    if model.startswith(LIVE):
        raise UserError(
            f"model: {model} was a pipeline handed to nablaflow.align; give it again (model=…), or "
            "save it with save_pretrained and give its folder"
        )
    if model.startswith(RANDOM):
        return random_by_name(model, dtype)
    path = at_home(model)
    check_is_whole(path)
    is_here = check_is_there(model)
    if path.is_file():
        pipeline = load_single_file(path, dtype, of_decoder)
        _check_finite(model, pipeline)
        return pipeline
    if not is_here:
        path = _from_hub(model)
    parts = read_index(path)
    _check_index(parts)
    check_no_adapter_files(path, parts)
    check_files(path, parts)
    check_no_lora_inside(path, parts)
    check_weight_kinds(path, parts)
    check_checksums(path)
    variant = find_variant(path, parts)
    # None: where there are both kinds of files, diffusers still takes safetensors.
    safe = True if all_safetensors(path, parts) else None
    return _load(str(path), dtype, of_decoder, parts, use_safetensors=safe, variant=variant)


def check_is_there(model: str) -> bool:
    """Whether a model's name is of a file or a folder here, and not to be asked the hub for.

    Raises:
        UserError: there is none, and a hub id would not be written so.
    """
    if model.startswith((LIVE, RANDOM)) or at_home(model).exists():
        return True
    if not is_hub_id(model):
        if model.endswith("@") and is_hub_id(model[:-1]):
            raise UserError(
                f"model: {model} names no revision; give a branch, a tag or a commit after the @"
            )
        raise UserError(f"model: there is no folder {model}; check the path, or give a hub id")
    return False


def _fused(source: WithLora, dtype: torch.dtype, of_decoder: torch.dtype) -> Any:
    """In float32: half precision would round away what a LoRA adds to a weight."""
    base = source.model
    # Not into the weights of a pipeline that the user holds.
    exact = torch.float32
    own = base.copy(exact) if isinstance(base, LivePipeline) else load_pipeline(base, exact)
    made = fuse(own, family_of(own).part(), source.file, source.scale)
    for name, part in made.components.items():
        if isinstance(part, torch.nn.Module):
            part.to(of_decoder if name == DECODER else dtype)
    return made


def in_four_bits(pipeline: Any) -> Any:
    """The same pipeline, its denoiser quantized.

    Raises:
        UserError: it is of none that can be.
    """
    quantize(getattr(pipeline, family_of(pipeline).denoiser))
    return pipeline


def _from_hub(model: str) -> Path:
    """Where its files are here; weights are fetched for what is served alone."""
    parts = index_on_hub(model)
    _check_index(parts)
    family, _ = _serving(parts["_class_name"])
    return folder_from_hub(
        model, [name for name, part in family.load_options.items() if part is None]
    )


def _check_index(parts: dict[str, Any]) -> None:
    """What the list of parts tells, before any weights are read."""
    family, kind = _serving(parts.get("_class_name"))
    family.check_index(parts)
    check_named(parts, kind, {*family.load_options, *family.may_lack})
    check_libraries(parts, kind, family.load_options)
    check_classes(parts, kind, {family.denoiser, *family.encoders})


def _load(
    source: str,
    dtype: torch.dtype,
    of_decoder: torch.dtype,
    parts: dict[str, Any],
    **options: Any,
) -> DiffusionPipeline:
    family, kind = _serving(parts["_class_name"])
    options |= family.load_options
    options |= {name: None for name in family.may_lack if (parts.get(name) or [None])[0] is None}
    try:
        networks = load_own(source, parts, (family.denoiser,), dtype)
        networks |= load_own(source, parts, (DECODER,), of_decoder)
        networks |= load_encoders(source, parts, family.encoders, dtype)
        pipeline = kind.from_pretrained(source, torch_dtype=dtype, **options, **networks)
    except UserError:
        raise
    except Exception as error:  # the libraries raise many kinds for one cause: unreadable files
        check_scheduler_reads(source, parts)
        raise _unreadable(source, error) from error
    _check_complete(source, pipeline)
    _check_finite(source, pipeline)
    return pipeline


def _unreadable(source: str, error: Exception) -> UserError:
    # The first sentence: what follows is often advice to who calls the library.
    reason = re.split(r"\. (?=[A-Z])", " ".join(str(error).split()))[0][:200]
    if isinstance(error, MemoryError) or "allocate memory" in reason or "out of memory" in reason:
        return UserError(f"model: {source} does not fit into the memory; use a smaller one")
    return UserError(f"model: {source} cannot be loaded ({reason}); get it again")


def _check_complete(source: str, pipeline: Any) -> None:
    """What no file had a value for, diffusers leaves without one."""
    for part, network in pipeline.components.items():
        if not isinstance(network, torch.nn.Module):
            continue
        missing = [name for name, value in network.named_parameters() if value.is_meta]
        if missing:
            raise UserError(
                f"model: the {part} of {source} cannot be loaded ({len(missing)} weights such as "
                f"{missing[0]} are not in its files); get it again"
            )


def _check_finite(source: str, pipeline: Any) -> None:
    """Of the denoiser and the text encoders; an autoencoder's encoder is not used."""
    family = family_of(pipeline)
    parts = {name: getattr(pipeline, name, None) for name in (family.denoiser, *family.encoders)}
    check_finite(source, {name: part for name, part in parts.items() if part is not None})


@quiet_libraries()
def load_model(
    pipeline: Any, sampler: SamplerSettings, adapter: AdapterSettings, device: torch.device
) -> PipelineModel:
    """The pipeline as a model to align.

    Raises:
        UserError: its class is not served, or it does not fit the settings.
    """
    return family_of(pipeline)(pipeline, sampler, adapter, device)
