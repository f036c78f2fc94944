"""Writes the policy so that stock diffusers loads it, and proves it before calling it saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from nablaflow.errors import ExportError, TrainingStopped, UserError
from nablaflow.models.adapters import ADAPTER, LoraAdapter, trainable_state
from nablaflow.models.divided import plain_copy
from nablaflow.models.load import load_pipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.source import ModelSource
from nablaflow.models.written import write_checksums
from nablaflow.quiet import quiet_libraries
from nablaflow.storage.files import put_in_place, remove_tree, what_failed
from nablaflow.storage.header import put_in_order

TOLERANCE = 1e-4  # largest difference of a pixel in [0, 1], in float32 whatever was trained in
CHECK_STEPS = 2
CHECK_PROMPT = "a red circle"
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it


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


def save_policy(model: PipelineModel, source: ModelSource, folder: Path) -> Path:
    """Write the policy: ``folder/lora`` where a stock pipeline takes one, else ``folder/model``.

    Args:
        source: that the model came from, loaded again for the check.

    Returns:
        What was written.

    Raises:
        ExportError: the image of the stock pipeline differs; nothing is left behind.
        UserError: the disk is full.
    """
    as_lora = model.saves_lora
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
            f"output_dir: cannot write {final} ({what_failed(error)}); free some space"
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


def _merged(model: PipelineModel) -> Any:
    """The pipeline with the policy as its own network, float32; the model's is left alone."""
    pipeline = copy.copy(model.pipeline)
    network = plain_copy(model.network).float()
    if isinstance(model.adapter, LoraAdapter):
        network = _unwrap_lora(network)
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


@quiet_libraries()
@torch.no_grad()
def check_same_image(
    model: PipelineModel, source: ModelSource, folder: Path, *, as_lora: bool
) -> None:
    """Load what was written in a stock pipeline and compare its image with the policy's.

    Raises:
        ExportError: they differ.
        TrainingStopped: the policy's is not finite.
    """
    # Both in float32, from weights that were rounded alike: half precision would hide a fault.
    dtype = next(model.network.parameters()).dtype if as_lora else torch.float32
    stock = _in_float32(load_pipeline(source if as_lora else str(folder), dtype).to(model.device))
    # As the policy's: it selects the kernels. Before the LoRA, whose layout is the plain one.
    getattr(stock, model.denoiser).to(memory_format=torch.channels_last)
    if as_lora:
        stock.load_lora_weights(folder)
    with model.as_in_stock(), _full_float32():
        policy = _in_float32(model.pipeline)
        image = _image(model.stock_image, policy)
        found = _image(model.stock_image_by_its_own_decoder, stock)
        difference = float((found - image).abs().max())
    if not image.isfinite().all():
        raise TrainingStopped(
            "the policy's image is not finite: nothing is exported; use a smaller "
            "optimizer.learning_rate, optimizer.weight_decay or adapter.alpha"
        )
    if not difference <= TOLERANCE:
        raise ExportError(
            f"{folder} gives another image in a stock pipeline: largest difference "
            f"{difference:.1e}, allowed {TOLERANCE:.0e}"
        )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Without TF32, whose rounding is larger than the difference to be seen."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _in_float32(pipeline: Any) -> Any:
    """A pipeline of the same networks in float32; those that are so already are shared."""
    raised = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and not _is_float32(part):
            raised.register_modules(**{name: plain_copy(part).float()})
    return raised


def _is_float32(network: torch.nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in network.parameters())


def _image(draw: Callable[..., Tensor], pipeline: Any) -> Tensor:
    """One image in [0, 1] from a pipeline's own call, few steps from fixed noise."""
    pipeline.set_progress_bar_config(disable=True)
    return draw(
        pipeline,
        CHECK_PROMPT,
        num_inference_steps=few_steps(pipeline.scheduler),
        generator=torch.Generator().manual_seed(0),
    )


def few_steps(scheduler: Any) -> int:
    """The fewest that it takes: a PNDM begins with Runge-Kutta steps, of as many as its order."""
    whole = scheduler.config.get("skip_prk_steps") is False
    return scheduler.pndm_order if whole else CHECK_STEPS
