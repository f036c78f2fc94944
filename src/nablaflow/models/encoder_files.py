"""Text encoders from their files, of which every weight has to be there.

What a file has no value for, transformers fills with random numbers and a warning; a pipeline of
diffusers then makes other images, and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from nablaflow.errors import UserError
from nablaflow.models.folder import variant_of

UNREAD = "lm_head."
"""Of a language model that is read for its hidden states: it may be left out."""


def load_encoders(
    source: str, parts: Mapping[str, Any], names: Iterable[str], dtype: torch.dtype, **options: Any
) -> dict[str, Any]:
    """The text encoders of a pipeline, by the names of its parts.

    Args:
        source: a folder, or a hub id.
        parts: ``model_index.json``.
        names: of the parts; one that the pipeline does not have is left out.
        options: of ``from_pretrained``.

    Raises:
        UserError: a weight is in no file, or of another shape than the configuration's.
    """
    found = {name: parts.get(name) or (None, None) for name in names}
    return {
        name: _load(source, name, getattr(transformers, str(kind)), dtype, options)
        for name, (library, kind) in found.items()
        if library == "transformers"
    }


def _load(
    source: str, name: str, kind: type[Any], dtype: torch.dtype, options: dict[str, Any]
) -> Any:
    encoder, told = kind.from_pretrained(
        source,
        subfolder=name,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told, and refused here
        variant=variant_of(Path(source) / name),
        **options,
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
    return encoder
