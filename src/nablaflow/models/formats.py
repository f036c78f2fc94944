"""The formats that a policy is exported in, each read by other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from nablaflow.errors import UserError
from nablaflow.models.adapters import LoraAdapter
from nablaflow.models.export import (
    lora_layers,
    rounded,
    weight_updates,
    write_lora,
    write_merged,
)
from nablaflow.models.kohya import by_kohyas_names, whole_by_kohyas_names
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.rehearsal import sample_a_little
from nablaflow.models.same_image import check_same_image
from nablaflow.models.source import ModelSource
from nablaflow.storage.files import remove_tree
from nablaflow.storage.header import put_in_order

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
KOHYA_FILE = "kohya_lora.safetensors"


def write_kohya(model: PipelineModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the LoRA by kohya's names, a DoRA as the updates of its layers' whole weights.

    The readers do not agree on a DoRA's lengths: ComfyUI divides by those of the weight's rows,
    some by those of the updated weight's, A1111 by those of its columns, and diffusers leaves them
    out.

    Raises:
        UserError: a layer has no such name, or a value is too large for ``dtype``.
    """
    network, layout = model.network, model.published_layers
    assert isinstance(model.adapter, LoraAdapter)
    if model.adapter.config.use_dora:
        named = whole_by_kohyas_names(weight_updates(model), network, layout)
    else:
        named = by_kohyas_names(lora_layers(model), network, layout)
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
        UserError: the policy is no LoRA, or no pipeline of its class takes one.
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
