"""What lies in a diffusers folder, found out before any weight of it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import transformers
from torch import nn

from nablaflow.errors import UserError
from nablaflow.models.configurations import check_configurations
from nablaflow.storage.files import read_text
from nablaflow.storage.run_folder import INDEX, run_of_part

SAVE = "save a pipeline there with save_pretrained, or give a hub id"
SHARDS = 1 << 26  # bytes that a list of all weights' names may have
SHOWN = 3  # files that a message names
NO_NETWORKS = ("Tokenizer", "TokenizerFast", "Processor", "Extractor", "Scheduler")
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")

# The names that diffusers and transformers give to weights: a variant stands before the number of a
# shard in some of their versions, and behind it in others.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[A-Za-z]\w*))?(?P<shard>-\d+-of-\d+)?(?:\.(?P<other>[A-Za-z]\w*))?"
    r"\.(?P<kind>safetensors|bin)"
)
_LIST = re.compile(r".*\.index(\.\w+)?\.json")
"""A list of shards, of a variant or not."""


def check_is_whole(path: Path) -> None:
    """Refuse a file or a folder that is a part of a pipeline's, or has it inside, by its name.

    Raises:
        UserError: so it is.
    """
    if (path / INDEX).is_file():
        return
    if path.name == INDEX and path.is_file():
        raise UserError(f"model: {path} is the list of a folder's parts; give {path.parent}")
    part = path if path.is_dir() else path.parent
    if (part.parent / INDEX).is_file() and part.name in parts_in(part.parent / INDEX):
        raise UserError(f"model: {path} is a part of the model in {part.parent}; give that folder")
    run = run_of_part(path)
    if run is not None:
        raise UserError(f"model: {path} is a part of the run in {run}; give that folder")
    inside = sorted(found.parent for found in path.glob(f"snapshots/*/{INDEX}"))
    if inside:
        raise UserError(
            f"model: {path} is the hub's cache of a model; give its id, or {inside[-1]}"
        )


def read_index(folder: Path) -> dict[str, Any]:
    """The list of a folder's parts.

    Raises:
        UserError: it is missing, damaged, or names parts that are not there.
    """
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"model: {folder} is not a diffusers folder (it has no {INDEX}); {SAVE}")
    parts = parts_in(index)
    for part, kind in parts.items():
        wanted = isinstance(kind, list) and any(kind) and not part.startswith("_")
        if wanted and part not in OPTIONAL and not (folder / part).is_dir():
            raise UserError(f"model: {folder} has no {part} folder; copy the whole model")
    return parts


def parts_in(index: Path) -> dict[str, Any]:
    """What a ``model_index.json`` holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        parts = json.loads(index.read_text())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also of a number's digits
        raise UserError(f"model: {index} cannot be read ({error}); save the model again") from error
    if not isinstance(parts, dict):
        raise UserError(f"model: {index} holds no list of parts; save the model again")
    return parts


def check_files(folder: Path, parts: dict[str, Any]) -> None:
    """Refuse a folder whose parts are not all in files of its own.

    Raises:
        UserError: a file is missing, a pipe or no configuration, or an index of shards names
            another folder's.
    """
    for part in folders_of_parts(folder, parts):
        for path in sorted((folder / part).iterdir()):
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"model: {path} is a pipe or a device, and no file; remove it")
            if _LIST.fullmatch(path.name):
                _check_shards(path)
        check_configurations(folder / part)
    weighty = set(with_weights(folder, parts))
    for part in folders_of_parts(folder, parts):
        needs = part in weighty or is_network(parts[part])
        if needs and not (folder / part / "config.json").is_file():
            raise UserError(f"model: {folder} has no {part}/config.json; copy the whole model")
        if part in weighty:
            _check_listed(folder / part)
    for part in folders_of_parts(folder, parts):
        kind = str((parts[part] or [""])[-1])
        _check_weights(folder / part, kind)
        _check_vocabulary(folder / part, getattr(transformers, kind, None))


def _check_weights(place: Path, kind: str) -> None:
    """Refuse a network without weights that are read here; there may be other libraries'."""
    configured = (place / "config.json").is_file()
    if not configured or kind.endswith(NO_NETWORKS) or any(weights_in(place)):
        return
    others = [path.name for path in sorted(place.iterdir()) if path.suffix != ".json"]
    there = f"none but {', '.join(others[:SHOWN])}" if others else "none"
    raise UserError(
        f"model: {place} cannot be loaded, since it has no weights of PyTorch ({there}); download "
        f"{place.name}/*.safetensors, or *.bin, of the same model too"
    )


def _check_vocabulary(place: Path, kind: Any) -> None:
    """Refuse a tokenizer without words: transformers makes one that knows none, silently."""
    files = dict(getattr(kind, "vocab_files_names", None) or {})
    if not files or (place / files.pop("tokenizer_file", "")).is_file():
        return
    missing = [name for name in files.values() if not _holds_any(place / name)]
    if missing or not files:
        named = " or ".join(["tokenizer.json", *[" and ".join(missing)] * bool(missing)])
        raise UserError(
            f"model: {place} has no {named}, so that every prompt would be the same; copy the "
            f"whole {place.name} folder"
        )


def _holds_any(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _check_listed(place: Path) -> None:
    """Refuse shards without a list of them, which alone says what is in which."""
    shards = [match for match in _to_read(place) if match["shard"]]
    listed = any(_LIST.fullmatch(path.name) for path in place.iterdir())
    if shards and len(shards) == len(_to_read(place)) and not listed:
        raise UserError(
            f"model: {place} has {shards[0].string} and no list of such files "
            f"(*.{shards[0]['kind']}.index.json); copy the whole {place.name} folder"
        )


def _check_shards(index: Path) -> None:
    try:
        named = {str(name) for name in json.loads(read_text(index, SHARDS))["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"model: {index} is no list of weights ({type(error).__name__}); get it again"
        ) from error
    for name in sorted(named):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(
                f"model: {index} names {name}, and there is no such file beside it; copy the whole "
                "model"
            )


def find_variant(folder: Path, parts: dict[str, Any]) -> str | None:
    """The variant of the weights to read: none where there are plain ones, else the only one.

    Raises:
        UserError: there are several and no plain ones.
    """
    needed: set[str] = set()
    for part in with_weights(folder, parts):
        needed |= _variants_alone(folder / part)
    if len(needed) > 1:
        names = ", ".join(sorted(needed))
        raise UserError(
            f"model: {folder} has its weights in the variants {names} only; load one with "
            "DiffusionPipeline.from_pretrained(…, variant=…) and save it with save_pretrained"
        )
    return next(iter(needed), None)


def variant_of(part: Path) -> str | None:
    """That of the weights in a part's own folder; None where there are plain ones, or none."""
    return min(_variants_alone(part), default=None) if part.is_dir() else None


def _variants_alone(part: Path) -> set[str]:
    """Variants of a part's weights, where there are no plain ones."""
    found = {_variant(match) for match in weights_in(part)}
    return set() if None in found else {name for name in found if name is not None}


def all_safetensors(folder: Path, parts: dict[str, Any]) -> bool:
    """Whether every part's weights are there as safetensors; else some are .bin files alone."""
    return all(has_safetensors(folder / part) for part in with_weights(folder, parts))


def has_safetensors(part: Path) -> bool:
    """Whether the weights to read in a part's own folder are there as safetensors."""
    return "safetensors" in {match["kind"] for match in _to_read(part)}


def files_of(folder: Path) -> list[Path]:
    """The files of a pipeline's folder that make it what it is: weights and configurations.

    Raises:
        UserError: it is none, or lacks a part.
    """
    parts = read_index(folder)
    weights = [
        folder / part / match.string
        for part in with_weights(folder, parts)
        for match in _to_read(folder / part)
    ]
    names = ("config.json", "scheduler_config.json")
    configs = [folder / part / name for part in folders_of_parts(folder, parts) for name in names]
    return [*weights, *filter(Path.is_file, configs)]


def _to_read(part: Path) -> list[re.Match[str]]:
    """The plain ones where there are such, whatever kind they are of."""
    found = weights_in(part)
    return [match for match in found if _variant(match) is None] or found


def is_network(entry: Any) -> bool:
    """Whether a part of the list, library and class, is one with weights."""
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        return False
    library = {"diffusers": diffusers, "transformers": transformers}.get(str(entry[0]))
    kind = getattr(library, str(entry[1]), None)
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def folders_of_parts(folder: Path, parts: dict[str, Any]) -> Iterator[str]:
    """The parts that have a folder, those aside that are not read."""
    for part in parts:
        if part not in OPTIONAL and (folder / part).is_dir():
            yield part


def with_weights(folder: Path, parts: dict[str, Any]) -> Iterator[str]:
    """The parts that are networks, by what lies in their folders."""
    return (part for part in folders_of_parts(folder, parts) if any(weights_in(folder / part)))


def weights_in(folder: Path) -> list[re.Match[str]]:
    """Its files of weights."""
    found = (_WEIGHTS.fullmatch(path.name) for path in sorted(folder.iterdir()))
    return [match for match in found if match is not None]


def _variant(match: re.Match[str]) -> str | None:
    return match["variant"] or match["other"]
