"""A folder that was saved while a LoRA was on one of its parts: found before it is read.

diffusers saves such a network under other names, its own weights and the LoRA's in one file.
transformers saves the LoRA alone, and nothing of the text encoder that it is on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from nablaflow.errors import UserError
from nablaflow.models.folder import folders_of_parts, is_network, weights_in, with_weights

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""What peft and transformers save of a LoRA."""


def check_no_adapter_files(folder: Path, parts: dict[str, Any]) -> None:
    """Refuse a network of which a folder has a LoRA, and not itself or, to transformers, besides.

    Args:
        parts: ``model_index.json``.

    Raises:
        UserError: there is one.
    """
    for part in folders_of_parts(folder, parts):
        if not is_network(parts[part]):
            continue
        place, library = folder / part, parts[part][0]
        found = [name for name in ADAPTERS if (place / name).is_file()]
        if found and (library == "transformers" or not any(weights_in(place))):
            raise _has_one(place / found[-1], parts, part)


def check_no_lora_inside(folder: Path, parts: dict[str, Any]) -> None:
    """Refuse weights that were saved while a LoRA was on them: half of them have other names.

    Args:
        parts: ``model_index.json``.

    Raises:
        UserError: there are such, or a file is damaged.
    """
    for part in with_weights(folder, parts):
        for match in weights_in(folder / part):
            path = folder / part / match.string
            if any(_is_adapters(name) for name in _names(path)):
                raise _has_one(path, parts, part)


def _has_one(path: Path, parts: dict[str, Any], part: str) -> UserError:
    pipeline = getattr(diffusers, str(parts.get("_class_name")), None)
    call = how_to_unload(pipeline, part, getattr(diffusers, str(parts[part][1]), None))
    if call is None:
        remedy = f"put the {part} folder of the model that it was trained on in its place"
    else:  # saved to the same folder, a text encoder would leave the LoRA's files beside it
        remedy = f"in the pipeline that it came from {call}, and save it to a new folder"
    return UserError(f"model: {path} was saved with a LoRA inside; {remedy}")


def how_to_unload(pipeline: Any, part: str, network: Any) -> str | None:
    """What takes a LoRA off a part of a pipeline; None: nothing of diffusers does, as of a T5.

    Args:
        pipeline: its class.
        network: the part, or its class.
    """
    keep = "if it is to stay, then"
    if part in (getattr(pipeline, "_lora_loadable_modules", None) or ()):
        return f"call fuse_lora(), {keep} unload_lora_weights()"
    if hasattr(network, "fuse_lora"):
        return f"call {part}.fuse_lora(), {keep} {part}.unload_lora()"
    return None


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
