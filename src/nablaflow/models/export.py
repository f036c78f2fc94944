"""Writes the policy so that stock diffusers loads it, and proves it before calling it saved."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from nablaflow.diffusion.schedule import WHERE, left_unsaid
from nablaflow.errors import UserError
from nablaflow.models.adapters import ADAPTER, LoraAdapter, trainable_state
from nablaflow.models.divided import plain_copy
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.quantized import dequantize
from nablaflow.models.same_image import check_same_image
from nablaflow.models.source import ModelSource
from nablaflow.quiet import quiet_libraries
from nablaflow.storage.files import put_in_place, remedy, remove_tree, what_failed
from nablaflow.storage.header import put_in_order
from nablaflow.storage.run_folder import LORA_FILE
from nablaflow.storage.written import write_checksums


def lora_layers(model: PipelineModel) -> dict[str, Tensor]:
    """The LoRA's weights by peft's names, without the adapter's, and with its scale in them.

    The update is (alpha / rank) B A, or by rsLoRA (alpha / sqrt(rank)) B A. Some readers know alpha
    from the file's metadata, some from a tensor of its own, some not at all; so B has the scale,
    and alpha is the rank for all of them.
    """
    state = get_peft_model_state_dict(
        _with_config(model),
        # As they are now: FSDP2 divides what it is asked for a state_dict.
        state_dict=trainable_state(model.network),
        adapter_name=ADAPTER,
        save_embedding_layers=False,
    )
    assert isinstance(model.adapter, LoraAdapter)
    scale = model.adapter.factor
    return {
        name: (scale * value if ".lora_B." in name else value).detach().contiguous()
        for name, value in state.items()
    }


def _with_config(model: PipelineModel) -> Any:
    network: Any = model.network
    assert isinstance(model.adapter, LoraAdapter)
    network.peft_config = {ADAPTER: model.adapter.config}
    return network


def save_policy(model: PipelineModel, source: ModelSource, folder: str | Path) -> Path:
    """Write the policy: ``folder/lora`` where a stock pipeline takes one, else ``folder/model``.

    Args:
        source: that the model came from, loaded again for the check.

    Returns:
        What was written.

    Raises:
        ExportError: the image of the stock pipeline differs; nothing is left behind.
        UserError: the disk is full.
    """
    as_lora, folder = model.saves_lora, Path(folder)
    final = folder / ("lora" if as_lora else "model")
    partial = folder / f".partial-{final.name}"
    remove_tree(partial)
    try:
        write = write_lora if as_lora else write_merged
        write(model, partial)
        if not as_lora:
            write_checksums(partial)
        check_same_image(model, source, partial, as_lora=as_lora)
        put_in_place(partial, final)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"output_dir: cannot write {final} ({what_failed(error)}); {remedy(error)}"
        ) from error
    finally:
        remove_tree(partial)
    return final


def write_lora(model: PipelineModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the LoRA as diffusers has it.

    Raises:
        UserError: a value is too large for ``dtype``.
    """
    assert isinstance(model.adapter, LoraAdapter)
    layers: dict[str, Any] = rounded(lora_layers(model), dtype)
    part = model.denoiser
    given = {
        f"{part}_lora_layers": layers,
        f"{part}_lora_adapter_metadata": _plain(model.adapter.config.to_dict()),
    }
    type(model.pipeline).save_lora_weights(folder, **given)
    put_in_order(folder / LORA_FILE)


@quiet_libraries()
def write_merged(model: PipelineModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a whole pipeline whose network is the policy.

    Raises:
        UserError: a value is too large for ``dtype``.
    """
    pipeline = _merged(model)
    if dtype != torch.float32:
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                rounded(dict(part.named_parameters()), dtype)
                pipeline.register_modules(**{name: copy.deepcopy(part).to(dtype)})
    pipeline.save_pretrained(folder)
    _leave_unsaid(pipeline.scheduler, folder / WHERE)


def _leave_unsaid(scheduler: Any, path: Path) -> None:
    """Have a saved scheduler say what its model's folder said, and no default of its class besides.

    What is said counts where another class is made of it, as in the lines that load the policy, and
    a default does not: its noise levels would be others than those of the run.
    """
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    unsaid = left_unsaid(config)
    said = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in said.items() if name not in unsaid}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same in another precision.

    Raises:
        UserError: a value is too large for it.
    """
    found = {name: value.detach().to("cpu", dtype) for name, value in tensors.items()}
    for name, value in found.items():
        if not value.isfinite().all() and tensors[name].isfinite().all():
            kind = str(dtype).removeprefix("torch.")
            raise UserError(f"--dtype: {name} is too large for {kind}; use bfloat16 or float32")
    return found


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a LoRA's configuration that another peft needs, in types that JSON has."""
    names = ("r", "target_modules", "init_lora_weights", "use_dora")
    plain = {name: sorted(v) if isinstance(v := config[name], set) else v for name in names}
    return plain | {"lora_alpha": config["r"]}  # see `lora_layers`


def weight_updates(model: PipelineModel) -> dict[str, Tensor]:
    """What a LoRA, or a DoRA, adds to the weight of each of its layers, by the layer's path."""
    layers: list[tuple[str, Any]] = list(model.network.named_modules())
    return {name: _update(layer) for name, layer in layers if hasattr(layer, "get_base_layer")}


def _update(layer: Any) -> Tensor:
    """What is added to one layer's weight, float32, on the processor; the layer is left alone."""
    merged = copy.deepcopy(layer).to("cpu", torch.float32)
    reference = merged.get_base_layer().weight.detach().clone()
    merged.merge()
    return merged.get_base_layer().weight.detach() - reference


def _merged(model: PipelineModel) -> Any:
    """The pipeline with the policy as its own network, float32, on the processor.

    The model's is left alone, and no second one takes an accelerator's memory.
    """
    pipeline = copy.copy(model.pipeline)
    network = plain_copy(model.network, torch.device("cpu"), torch.float32)
    if isinstance(model.adapter, LoraAdapter):
        # Of 4 bits the weights that they stand for: an update would not fit between their levels.
        network = _unwrap_lora(dequantize(network).float())
    pipeline.register_modules(**{model.denoiser: network})
    return pipeline


def _unwrap_lora(network: Any) -> Any:
    """Merge each update into its layer and put the plain layer back in place."""
    for name, layer in list(network.named_modules()):
        if hasattr(layer, "get_base_layer") and hasattr(layer, "merge"):
            layer.merge()
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    return network
