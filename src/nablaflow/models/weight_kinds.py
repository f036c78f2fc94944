"""Weights of a kind that is none: whole numbers, which both libraries turn into floats silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nablaflow.errors import UserError
from nablaflow.models.folder import weights_in, with_weights

TRAINED = (".weight", ".bias")
"""How names end of what a network multiplies by and adds; tables of places may be whole numbers."""


def check_weight_kinds(folder: Path, parts: dict[str, Any]) -> None:
    """Refuse files of weights that are whole numbers, truth values or complex numbers.

    So are those of a network that was quantized, without the scales that make them weights. Files
    that cannot be read are refused before (`nablaflow.models.lora_inside`).

    Args:
        parts: ``model_index.json``.

    Raises:
        UserError: there are such.
    """
    for part in with_weights(folder, parts):
        for match in weights_in(folder / part):
            path = folder / part / match.string
            for name, dtype in _dtypes(path):
                if name.endswith(TRAINED) and not _is_real(dtype):
                    raise UserError(
                        f"model: {path} has weights of the kind {dtype} ({name}), as a quantized "
                        f"network has; use the {part} of the same model in bf16, fp16 or float32"
                    )


def _is_real(dtype: str) -> bool:
    return dtype.startswith(("F", "BF", "float", "bfloat"))


def _dtypes(path: Path) -> Iterator[tuple[str, str]]:
    """Names of the tensors in a file, whose values are left on the disk, and of their dtypes."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                yield name, file.get_slice(name).get_dtype()
        return
    for name, value in torch.load(path, map_location="meta", mmap=True, weights_only=True).items():
        if isinstance(value, torch.Tensor):
            yield name, str(value.dtype).removeprefix("torch.")
