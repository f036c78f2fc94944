"""Where a model comes from: its folder or hub id, and a hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from nablaflow import nano
from nablaflow.models.fused import WithLora
from nablaflow.models.live import LivePipeline
from nablaflow.models.quantized import Quantized

ModelSource = str | LivePipeline | WithLora | Quantized
"""A folder or a hub id; or a pipeline that the user holds; or one of them and a LoRA; in 4 bits."""


def model_source(model: str) -> str:
    """Folder or hub id that a configuration's ``model`` is loaded from."""
    return str(nano.path(model)) if model in nano.MODELS else model


def fingerprint(pipeline: Any) -> str:
    """A hash of all weights of a pipeline."""
    return fingerprint_of(pipeline.components)


def fingerprint_of(parts: Mapping[str, Any]) -> str:
    """A hash of all weights of some parts, by their names."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        if isinstance(part, torch.nn.Module):
            for key, value in sorted(part.state_dict().items()):
                digest.update(key.encode())
                flat = value.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:24]
