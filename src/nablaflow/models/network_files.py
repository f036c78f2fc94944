"""The networks of a pipeline from their files: every weight is there, and every one has a place.

What a file has no value for, transformers fills with random numbers and a warning; a pipeline of
diffusers then makes other images, and says nothing. What a network has no place for, such as the
scales of quantized weights, both libraries leave out with a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from nablaflow.diffusion.schedule import WHERE
from nablaflow.errors import UserError
from nablaflow.models.folder import has_safetensors, variant_of

UNREAD = "lm_head."
"""Of a language model that is read for its hidden states: it may be left out."""
MADE = ("position_ids", "inv_freq")
"""Tables that a network makes by itself, and older files hold."""


def load_own(
    source: str, parts: Mapping[str, Any], names: Iterable[str], dtype: torch.dtype
) -> dict[str, Any]:
    """The networks of diffusers' own classes, the denoiser and the autoencoder, by their names.

    Args:
        source: as for `load_encoders`, and so for the others.

    Raises:
        UserError: a file has a weight that the network has no place for.
    """
    return {
        name: _load_own(source, name, kind, dtype)
        for name, kind in _classes(parts, names, diffusers)
    }


def _classes(
    parts: Mapping[str, Any], names: Iterable[str], library: Any
) -> Iterator[tuple[str, type[Any]]]:
    """Those of the names whose class is a library's, with the class."""
    for name in names:
        owner, kind = parts.get(name) or (None, None)
        if owner == library.__name__ and hasattr(library, str(kind)):
            yield name, getattr(library, str(kind))


def _load_own(source: str, name: str, kind: type[Any], dtype: torch.dtype) -> Any:
    network, told = kind.from_pretrained(
        source,
        subfolder=name,
        torch_dtype=dtype,
        output_loading_info=True,
        **_files(Path(source) / name),
    )
    _check_read(source, name, told["unexpected_keys"])
    return network


def _files(part: Path) -> dict[str, Any]:
    """Which of a part's files: told to take .bin, diffusers does not look for others and say so."""
    return {"variant": variant_of(part), "use_safetensors": has_safetensors(part)}


def _check_read(source: str, name: str, unread: Iterable[str]) -> None:
    left = sorted(key for key in unread if not key.endswith(MADE))
    if left:
        raise UserError(
            f"model: the {name} of {source} cannot be loaded (its files hold {len(left)} weights "
            f"such as {left[0]}, for which its config.json has no place); if they are quantized, "
            f"use those that are not, else copy the whole {name} folder"
        )


def check_scheduler_reads(source: str, parts: Mapping[str, Any]) -> None:
    """Refuse a scheduler's configuration that its class makes nothing of, by its file.

    Args:
        source: a folder.
        parts: ``model_index.json``.

    Raises:
        UserError: so it is.
    """
    for name, kind in _classes(parts, ("scheduler",), diffusers):
        try:
            kind.from_pretrained(source, subfolder=name)
        except Exception as error:  # many kinds, as the values are used and not checked
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"model: {source}/{WHERE} is no {kind.__name__}'s ({reason}); use the one that the "
                "model was trained with"
            ) from error


def load_encoders(
    source: str, parts: Mapping[str, Any], names: Iterable[str], dtype: torch.dtype
) -> dict[str, Any]:
    """The text encoders of a pipeline, by the names of its parts.

    Args:
        source: a folder.
        parts: ``model_index.json``.
        names: of the parts; one that the pipeline does not have is left out.

    Raises:
        UserError: a weight is in no file, or of another shape than the configuration's.
    """
    return {
        name: _load(source, name, kind, dtype)
        for name, kind in _classes(parts, names, transformers)
    }


def _load(source: str, name: str, kind: type[Any], dtype: torch.dtype) -> Any:
    encoder, told = kind.from_pretrained(
        source,
        subfolder=name,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told, and refused here
        **_files(Path(source) / name),
    )
    other = sorted(told["mismatched_keys"])
    missing = sorted(key for key in told["missing_keys"] if not key.startswith(UNREAD))
    if other:
        key, theirs, wanted = other[0]
        raise UserError(
            f"model: the {name} of {source} cannot be loaded ({key} is {list(theirs)} in its files "
            f"and {list(wanted)} by its config.json); copy the whole {name} folder"
        )
    if missing:
        raise UserError(
            f"model: the {name} of {source} cannot be loaded ({len(missing)} weights such as "
            f"{missing[0]} are not in its files); get it again"
        )
    _check_read(source, name, _of_its_layers(encoder, told["unexpected_keys"]))
    return encoder


def check_finite(source: str, networks: Mapping[str, Any]) -> None:
    """Refuse weights that are no numbers, by name: one may show with some prompts alone.

    Raises:
        UserError: there is one.
    """
    for part, network in networks.items():
        for name, value in network.named_parameters():
            ends = value.detach().aminmax() if value.numel() else ()
            if not all(end.isfinite() for end in ends):
                raise UserError(
                    f"model: the {part} of {source} has weights that are not finite ({name}); get "
                    "it again"
                )


def _of_its_layers(encoder: torch.nn.Module, unread: Iterable[str]) -> list[str]:
    """Those of layers that it has: a file may hold a whole CLIP or T5, or deeper ones besides."""
    layers = {name for name, _ in encoder.named_modules() if name}
    paths = {key: key.rpartition(".")[0].removeprefix("text_model.") for key in unread}
    return [key for key, path in paths.items() if path in layers]
