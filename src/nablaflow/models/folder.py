"""What lies in a diffusers folder, found out before any weight of it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nablaflow.errors import UserError

INDEX = "model_index.json"
SAVE = "save a pipeline there with save_pretrained, or give a hub id"
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")

# The names that diffusers and transformers give to weights: a variant stands before the number of a
# shard in some of their versions, and behind it in others.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[A-Za-z]\w*))?(?:-\d+-of-\d+)?(?:\.(?P<other>[A-Za-z]\w*))?"
    r"\.(?P<kind>safetensors|bin)"
)


def read_index(folder: Path) -> dict[str, Any]:
    """The list of a folder's parts.

    Raises:
        UserError: it is missing, damaged, or names parts that are not there.
    """
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"model: {folder} is not a diffusers folder (it has no {INDEX}); {SAVE}")
    try:
        parts = json.loads(index.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"model: {index} cannot be read ({error}); save the model again") from error
    if not isinstance(parts, dict):
        raise UserError(f"model: {index} holds no list of parts; save the model again")
    for part, kind in parts.items():
        wanted = isinstance(kind, list) and any(kind) and not part.startswith("_")
        if wanted and part not in OPTIONAL and not (folder / part).is_dir():
            raise UserError(f"model: {folder} has no {part} folder; copy the whole model")
    return parts


def find_variant(folder: Path, parts: dict[str, Any]) -> str | None:
    """The variant of the weights to read: none where there are plain ones, else the only one.

    Raises:
        UserError: there are several and no plain ones.
    """
    needed: set[str] = set()
    for part in _with_weights(folder, parts):
        found = {_variant(match) for match in _matches(folder / part)}
        if None not in found:
            needed |= {name for name in found if name is not None}
    if len(needed) > 1:
        names = ", ".join(sorted(needed))
        raise UserError(
            f"model: {folder} has its weights in the variants {names} only; load one with "
            "DiffusionPipeline.from_pretrained(…, variant=…) and save it with save_pretrained"
        )
    return next(iter(needed), None)


def all_safetensors(folder: Path, parts: dict[str, Any]) -> bool:
    """Whether every part's weights are there as safetensors; else some are .bin files alone."""
    return all(
        "safetensors" in {match["kind"] for match in _matches(folder / part)}
        for part in _with_weights(folder, parts)
    )


def check_no_lora_inside(folder: Path, parts: dict[str, Any]) -> None:
    """Refuse weights that were saved while a LoRA was on them: half of them have other names.

    Raises:
        UserError: there are such, or a file is damaged.
    """
    for part in _with_weights(folder, parts):
        for match in _matches(folder / part):
            path = folder / part / match.string
            if any(_is_adapters(name) for name in _names(path)):
                raise UserError(
                    f"model: {path} was saved with a LoRA inside; in the pipeline that it came "
                    "from call fuse_lora(), if it is to stay, then unload_lora_weights(), and save "
                    "it again"
                )


def _is_adapters(name: str) -> bool:
    return ".base_layer." in name or ".lora_" in name or "lora_magnitude" in name


def _names(path: Path) -> list[str]:
    """Names of the tensors in a file, whose values are left on the disk."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return list(file.keys())
        return list(torch.load(path, map_location="meta", mmap=True, weights_only=True))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:100]
        raise UserError(f"model: {path} cannot be loaded ({reason}); get it again") from error
    except Exception as error:  # what `weights_only` refuses has a class of pickle's own
        raise UserError(
            f"model: {path} cannot be loaded as weights alone; it may hold code. Convert it where "
            "you trust it: DiffusionPipeline.from_pretrained(…).save_pretrained(…)"
        ) from error


def _with_weights(folder: Path, parts: dict[str, Any]) -> Iterator[str]:
    """The parts that are networks, by what lies in their folders."""
    for part in parts:
        if part not in OPTIONAL and (folder / part).is_dir() and any(_matches(folder / part)):
            yield part


def _matches(folder: Path) -> list[re.Match[str]]:
    """Its files of weights."""
    found = (_WEIGHTS.fullmatch(path.name) for path in sorted(folder.iterdir()))
    return [match for match in found if match is not None]


def _variant(match: re.Match[str]) -> str | None:
    return match["variant"] or match["other"]
