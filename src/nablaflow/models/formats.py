"""The formats that a policy is exported in, each read by other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nablaflow.errors import UserError
from nablaflow.models.adapters import LoraAdapter
from nablaflow.models.export import (
    lora_layers,
    rounded,
    write_lora,
    write_merged,
)
from nablaflow.models.kohya import by_kohyas_names
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.rehearsal import sample_a_little
from nablaflow.models.same_image import check_same_image
from nablaflow.models.source import ModelSource
from nablaflow.storage.files import remove_tree
from nablaflow.storage.header import put_in_order

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
KOHYA_FILE = "kohya_lora.safetensors"


def write_kohya(model: PipelineModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the LoRA by kohya's names.

    Raises:
        UserError: a layer has no such name, or a value is too large for ``dtype``.
    """
    layers = lora_layers(model)
    network: Any = model.network
    named = by_kohyas_names(layers, network, model.published_layers)
    exact = {name: value for name, value in named.items() if name.endswith(".alpha")}
    folder.mkdir(parents=True)
    tensors = {**rounded(named, dtype), **exact}
    save_file(tensors, folder / KOHYA_FILE, metadata={"format": "pt"})
    put_in_order(folder / KOHYA_FILE)


Write = Callable[[PipelineModel, Path, torch.dtype], None]

FORMATS: Mapping[str, Write] = {
    "diffusers": write_lora,
    "kohya": write_kohya,
    "merged": write_merged,
}
"""By the name that ``--format`` has for it."""


def check_format(model: PipelineModel, name: str) -> None:
    """Refuse what cannot be written so.

    Raises:
        UserError: the policy is no LoRA, no pipeline of its class takes one, or the format's
            readers would not agree on it.
    """
    if name == "merged":
        return
    if not isinstance(model.adapter, LoraAdapter):
        raise UserError(
            f"--format: every weight of the run was trained (adapter.kind=full), so there is no "
            f"LoRA for {name}; use merged"
        )
    if not model.saves_lora:
        kind = type(model.pipeline).__name__
        raise UserError(f"--format: nothing reads a LoRA of a {kind}; use merged, not {name}")
    if name == "kohya" and model.adapter.config.use_dora:
        # ComfyUI divides by the lengths of the weight's rows, others by those of the updated
        # weight's, A1111 by those of its columns, and diffusers leaves the lengths out.
        raise UserError(
            "--format: the readers of kohya's names do not agree on what DoRA's lengths are "
            "(adapter.dora=true); use diffusers or merged"
        )


def check_decodes(model: PipelineModel, dtype: torch.dtype) -> None:
    """Refuse a precision that the pipeline's decoder overflows in: its images would be of nothing.

    Raises:
        UserError: it does so at what the model samples.
    """
    if dtype != torch.float16 or model.decoder_is_raised:
        return
    if model.overflows(sample_a_little(model), dtype):
        raise UserError(
            "--dtype: the pipeline's decoder overflows in float16, so that its images would be of "
            "nothing; use bfloat16 or float32"
        )


def write_policy(
    model: PipelineModel, source: ModelSource, folder: Path, name: str, dtype: torch.dtype
) -> None:
    """Write the policy in a format, proven in a stock pipeline before it is rounded to ``dtype``.

    Kohya's names are given to the very tensors that were proven by diffusers' names.

    Args:
        source: that the model came from, loaded again for the check.
        folder: is not there yet.

    Raises:
        UserError: the format or the precision cannot hold it.
        ExportError: a stock pipeline gives another image.
    """
    check_format(model, name)
    as_lora = name != "merged"
    if not as_lora:
        check_decodes(model, dtype)
    (write_lora if as_lora else write_merged)(model, folder)
    check_same_image(model, source, folder, as_lora=as_lora)
    if name == "kohya" or dtype != torch.float32:
        remove_tree(folder)
        FORMATS[name](model, folder, dtype)
