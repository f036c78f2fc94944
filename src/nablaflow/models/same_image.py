"""Loads what was written in a stock pipeline and compares its image with the policy's.

Where a model fills the accelerator there is no room for a second one, nor for one in float32. So
the stock pipeline is read on the processor, and what is the policy's own to the last bit is shared
with it; a layer in half precision is cast for its own call alone; and of a denoiser whose weights
are its own, as a merged one's are, each layer is on the accelerator for its own call alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from nablaflow.errors import ExportError, TrainingStopped
from nablaflow.models.load import load_pipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.raised import computing_in_float32, looking_like_float32
from nablaflow.models.source import ModelSource
from nablaflow.quiet import quiet_libraries

TOLERANCE = 1e-4  # largest difference of a pixel in [0, 1], in float32 whatever was trained in
CHECK_STEPS = 2
CHECK_PROMPT = "a red circle"


@quiet_libraries()
@torch.no_grad()
def check_same_image(
    model: PipelineModel, source: ModelSource, folder: Path, *, as_lora: bool
) -> None:
    """Load what was written in a stock pipeline and compare its image with the policy's.

    Args:
        source: that the model came from, loaded again to take the LoRA.
        folder: what was written: a LoRA, or a whole pipeline.

    Raises:
        ExportError: they differ, or the model's own weights are no longer the source's.
        TrainingStopped: the policy's image is not finite.
    """
    # In float32, from weights that were rounded alike: half precision would hide a fault.
    dtype = next(model.network.parameters()).dtype if as_lora else torch.float32
    stock = load_pipeline(source if as_lora else str(folder), dtype, exact_decoder=True)
    _share(stock, model, as_lora=as_lora)
    with model.as_in_stock(), _full_float32(), computing_in_float32(*_networks(model, stock)):
        if as_lora:
            with looking_like_float32(getattr(stock, model.denoiser)):
                stock.load_lora_weights(folder)
        image = _image(model.stock_image, model.pipeline)
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


def _networks(model: PipelineModel, stock: Any) -> list[nn.Module]:
    encoders = [getattr(model.pipeline, name, None) for name in model.encoders]
    return [
        model.network,
        getattr(stock, model.denoiser),
        *(encoder for encoder in encoders if encoder is not None),
    ]


def _share(stock: Any, model: PipelineModel, *, as_lora: bool) -> None:
    """Give a stock pipeline the model's own weights where they are the same, and its device."""
    for name, part in stock.components.items():
        if not isinstance(part, nn.Module):
            continue
        if name in model.encoders:
            own = getattr(model.pipeline, name)
            _require_same(name, part, _plain_names(own))
            stock.register_modules(**{name: own})
        elif name != model.denoiser:
            part.to(model.device).float()
        elif as_lora:
            base = _require_same(name, part, _plain_names(model.network))
            part.load_state_dict(base, assign=True)
            part.to(model.device)
        else:
            # As the policy's layout: it selects the kernels.
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if model.device.type != "cpu":
                cpu_offload(part, model.device)


def _plain_names(network: nn.Module) -> dict[str, Tensor]:
    """A network's pretrained weights, themselves, by the names they had before an adapter.

    Not by its state_dict, for which FSDP2 divides what is gathered.
    """
    held: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    held |= dict(network.named_buffers(remove_duplicate=False))
    names = {name: name.replace(".base_layer.", ".") for name in held if ".lora_" not in name}
    return {plain: held[name] for name, plain in names.items()}


def _require_same(part: str, network: nn.Module, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own in the places of a network's weights."""
    for name, value in network.state_dict().items():
        if name not in own or not torch.equal(value.to(own[name]), own[name]):
            raise ExportError(
                f"model: its {part} is no longer what was loaded, at {name}; nothing is exported"
            )
    return {name: own[name] for name in network.state_dict()}


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
