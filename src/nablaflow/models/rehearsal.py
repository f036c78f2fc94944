"""What would end a run after hours, tried before its first update: sampling, decoding, saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from nablaflow.diffusion import kernel_mean
from nablaflow.diffusion.schedule import WHERE
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.models.adapters import LoraAdapter, swapped, trainable_state
from nablaflow.models.decoder_precision import PRECISIONS
from nablaflow.models.export import save_policy
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.same_image import CHECK_PROMPT, few_steps
from nablaflow.models.source import ModelSource
from nablaflow.storage.scratch import scratch_folder
from nablaflow.typing import Latents

MOVED = 0.01  # standard deviation of what is added to a LoRA's factors


def rehearse(model: PipelineModel, source: ModelSource, place: Path) -> str | None:
    """Sample a little by the reference, and save and compare an adapter as at the end.

    Args:
        source: that the model came from.
        place: a folder on the disk that the run is written to; nothing is left in it.

    Returns:
        A line about a decoder that overflows where others may use it, or None.

    Raises:
        UserError: the reference gives what is not finite, or the disk is full.
        ExportError: a stock pipeline gives another image than the policy.
    """
    with folders_fault(model):
        x0_hat = sample_a_little(model)
        _check_decoder_in_training(model, x0_hat)
        with scratch_folder(place) as folder, _moved(model):
            _save(model, source, folder)
    return _overflow(model, x0_hat)


def _save(model: PipelineModel, source: ModelSource, folder: Path) -> None:
    try:
        save_policy(model, source, folder)
    except TrainingStopped as error:  # whose remedy is for a policy that was trained
        _check_own_image(model)
        raise UserError(
            f"adapter: its policy's image is not finite, before any training, with its weights "
            f"moved by {MOVED:g}; use a smaller adapter.alpha, or another adapter.start"
        ) from error


FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What libraries raise for parts that do not fit each other."""


@contextmanager
def folders_fault(model: PipelineModel) -> Iterator[None]:
    """Tell in one line what fails within, if the model's own pipeline cannot sample either.

    Raises:
        UserError: so it is; else what was raised.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        reason = _stock_failure(model)
        if reason is None:
            raise
        raise UserError(
            f"model: its own pipeline cannot sample it either ({reason}); get it again"
        ) from error


def _check_own_image(model: PipelineModel) -> None:
    """Where the reference's image is not finite either, the fault is its own scheduler's.

    Raises:
        UserError: so it is; what is not finite without it, `sample_a_little` has found.
    """
    if _stock_image(model).isfinite().all():
        return
    raise UserError(
        f"model: by its own scheduler, a {type(model.pipeline.scheduler).__name__}, its image is "
        f"not finite, whatever is trained; use another {WHERE}, such as that of the model it comes "
        "from"
    )


def _stock_image(model: PipelineModel) -> Tensor:
    pipeline = model.pipeline
    given = {
        "num_inference_steps": few_steps(pipeline.scheduler),
        "generator": torch.Generator().manual_seed(0),
    }
    with model.reference(), model.as_in_stock():
        return model.stock_image_by_its_own_decoder(pipeline, CHECK_PROMPT, **given)


def _stock_failure(model: PipelineModel) -> str | None:
    try:
        _stock_image(model)
    except FAILURES as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


@contextmanager
def _moved(model: PipelineModel) -> Iterator[None]:
    """A LoRA moved a bit: an untouched one changes no image, whatever becomes of it on the way."""
    if not isinstance(model.adapter, LoraAdapter):
        yield
        return
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value + MOVED * torch.randn(value.shape, generator=generator).to(value)
        for name, value in trainable_state(model.network).items()
    }
    with swapped(model.network, state):
        yield


@torch.no_grad()
def sample_a_little(model: PipelineModel) -> Latents:
    """The first and the last steps of the reference; x0_hat at the end of them."""
    process = model.process
    condition = model.condition([CHECK_PROMPT])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, *model.state_shape), generator=generator).to(model.device)
    with model.reference():
        for step in (process.steps, process.steps - 1, 1):
            k = torch.tensor([step], device=model.device)
            prediction = model.predict(x, k, condition)
            x = kernel_mean(process, x, prediction, k)
            timestep = int(process.timestep[step])
            _require_finite(x, f"the reference's prediction at timestep {timestep}", model)
    _require_finite(model.decode(prediction.x0_hat), "the image that its decoder makes", model)
    return prediction.x0_hat


def _require_finite(values: Tensor, what: str, model: PipelineModel) -> None:
    if values.isfinite().all():
        return
    remedy = "its weights or its scheduler are at fault; get it again"
    if model.guidance_scale != 1.0:
        remedy += f", or use less than sampler.guidance_scale={model.guidance_scale:g}"
    if _precision(model) == torch.float16:
        remedy = "fp16 may be too narrow for it; use training.precision=bf16 or float32"
    raise UserError(f"model: {what} is not finite, before any training; {remedy}")


def _precision(model: PipelineModel) -> torch.dtype:
    """Of the pretrained weights, which the adapter's are not always in."""
    return next(
        part for name, part in model.network.named_parameters() if "lora_" not in name
    ).dtype


def _check_decoder_in_training(model: PipelineModel, x0: Latents) -> None:
    """Try the decoder in the precision that updates have it in, with a gradient.

    Raises:
        UserError: an image or a gradient is not finite.
    """
    precision = model.decoder_precision
    if precision == "float32":
        return
    leaf = x0.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(model.decode_in_training(leaf).mean(), leaf)
    if model.overflows(x0, PRECISIONS[precision]) or not gradient.isfinite().all():
        others = "bf16 or float32" if precision == "fp16" else "float32"
        raise UserError(
            f"training.decoder_precision: the model's decoder overflows in {precision}, before "
            f"any training; use {others}"
        )


def _overflow(model: PipelineModel, x0: Latents) -> str | None:
    """Whether the decoder, float32 here, overflows in the half precision of its pipeline."""
    dtype = _precision(model)
    if dtype != torch.float16 or not model.overflows(x0, dtype):
        return None
    return (
        "model: its decoder overflows in fp16; it works in float32 here, and has to wherever the "
        "result is sampled: pipeline.vae.to(torch.float32)"
    )
