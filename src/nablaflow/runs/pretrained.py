"""The pretrained pipeline of a run: by name, or one that the user holds and hands over."""

from __future__ import annotations

from typing import Any

import torch

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models import (
    LivePipeline,
    ModelSource,
    Quantized,
    WithLora,
    fingerprint,
    in_four_bits,
    load_pipeline,
    model_source,
)
from nablaflow.models.file_mark import COMMIT, is_of_files, mark_of_files, pinned, place_of
from nablaflow.models.fused import SETTING as FUSED
from nablaflow.models.schedule_mark import schedule_mark
from nablaflow.quiet import quiet_libraries
from nablaflow.report.privacy import without_folders
from nablaflow.runs.begun_with import known_lora

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def source_of(config: Config, given: LivePipeline | None) -> ModelSource:
    """What is given, or else what the configuration names; with its LoRA and in its bits.

    Raises:
        UserError: there is no such LoRA, or another one than the run was begun with.
    """
    plain = as_read(config, given)
    return plain if config.model_quantization is None else Quantized(plain)


def as_read(config: Config, given: LivePipeline | None) -> str | LivePipeline | WithLora:
    """The same before it is quantized, which is what its hash is of.

    Raises:
        UserError: as `source_of`.
    """
    base = given or model_source(pinned(config.model, config.model_hash))
    if config.model_lora is None:
        return base
    file = known_lora(config.model_lora, FUSED, config.model_lora_hash)[0]
    return WithLora(base, file, config.model_lora_scale)


def fused_lora(source: ModelSource) -> tuple[str, float] | None:
    """The LoRA that belongs to a reference, without its folder, and its scale."""
    source = source.model if isinstance(source, Quantized) else source
    if not isinstance(source, WithLora):
        return None
    return without_folders(str(source.file)), source.scale


def copy_of_live(config: Config, live: LivePipeline, dtype: torch.dtype | None) -> Any:
    """A pipeline of the user's own, copied, with the LoRA of a configuration, and in its bits.

    Args:
        dtype: None: as the user's is.

    Raises:
        UserError: as `load_pretrained`: its owner may have loaded a LoRA into it since.
    """
    load_pretrained(config.model_copy(update={"model_quantization": None}), live)
    source = as_read(config, live)
    if isinstance(source, WithLora):
        made = load_pipeline(source, dtype or live.pipeline.dtype)
    else:
        made = live.copy(dtype)
    return made if config.model_quantization is None else in_four_bits(made)


def dtype_of(config: Config) -> torch.dtype:
    """A LoRA trains on top of weights in half precision; weights that train stay in float32."""
    full = config.adapter.kind == "full"
    return torch.float32 if full else DTYPES[config.training.precision]


def of_live(config: Config, pipeline: LivePipeline) -> Config:
    """With the name of a pipeline that is handed over, and what tells it from any other."""
    made = load_pipeline(as_read(config, pipeline), dtype_of(config))
    mark = f"{fingerprint(made)}-{schedule_mark(made.scheduler)}"
    return config.model_copy(update={"model": pipeline.name, "model_hash": mark})


def load_pretrained(config: Config, given: LivePipeline | None) -> Any:
    """The pipeline, in the precision of the run; its autoencoder, which measures, in float32.

    Raises:
        UserError: it cannot be loaded, or has other weights than the run was begun with.
    """
    if is_of_files(config.model_hash):
        _check_files(config, given)
    if config.model_hash is None or is_of_files(config.model_hash):
        return load_pipeline(source_of(config, given), dtype_of(config), exact_decoder=True)
    source, dtype = as_read(config, given), dtype_of(config)
    pipeline = load_pipeline(source, dtype)
    _check_weights(pipeline, config, given)
    if dtype != torch.float32:
        pipeline = load_pipeline(source, dtype, exact_decoder=True)
    return pipeline if config.model_quantization is None else in_four_bits(pipeline)


def _check_weights(pipeline: Any, config: Config, given: LivePipeline | None) -> None:
    """Refuse another pipeline than the one that was handed over when a run was begun."""
    weights, _, schedule = (config.model_hash or "").partition("-")
    name = "the pipeline that is given" if given else config.model
    if fingerprint(pipeline) != weights:
        done = "undo what was done to it since (a LoRA, another precision), or "
        remedy = done if given else ""
        raise UserError(
            f"model: {name} has other weights than the pipeline that the run was begun with; "
            f"{remedy}give that one (model=…)"
        )
    if schedule and schedule_mark(pipeline.scheduler) != schedule:
        raise UserError(
            f"model: the scheduler of {name} has other noise levels than that of the pipeline that "
            "the run was begun with; give it with the scheduler that it had then (model=…)"
        )


def with_mark(config: Config) -> Config:
    """With what tells the files of its model from others, for a run that begins to record.

    Raises:
        UserError: its model is a folder without a pipeline.
    """
    if config.model_hash is not None:
        return config
    return config.model_copy(update={"model_hash": mark_of_files(config.model)})


def _check_files(config: Config, given: LivePipeline | None) -> None:
    """Refuse another model than the folder, file or commit that a run was begun with."""
    mark = config.model_hash or ""
    if given is not None:
        raise UserError(
            f"model: the run was begun with {config.model}; give where that is now (model=…), and "
            "no pipeline"
        )
    is_there = mark.startswith(COMMIT) or place_of(config.model).exists()
    found = mark_of_files(pinned(config.model, mark)) if is_there else None
    if found is None:
        raise UserError(
            f"model: there is no {config.model}, which the run was begun with; give where it is "
            "now (model=…)"
        )
    if mark.startswith(COMMIT) and not found.startswith(COMMIT):
        raise UserError(
            f"model: {config.model} does not say that it is commit {mark.removeprefix(COMMIT)} on "
            "the hub, which the run was begun with; give the hub id (model=…)"
        )
    if found != mark:
        raise UserError(
            f"model: {config.model} is not what the run was begun with, by its files of weights "
            "and configurations; give that one (model=…), or begin another run"
        )


@quiet_libraries()
def reference_of(config: Config, given: LivePipeline | None, dtype: torch.dtype) -> Any:
    """The same to sample with, in any precision.

    Raises:
        UserError: as `load_pretrained`.
    """
    if is_of_files(config.model_hash):
        _check_files(config, given)
    if config.model_hash is None or is_of_files(config.model_hash):
        return load_pipeline(source_of(config, given), dtype)
    return load_pretrained(config, given).to(dtype)


def check_may_be_given(config: Config) -> None:
    """Another place of a run's model is believed only where the weights there can be checked.

    Raises:
        UserError: the run names its model.
    """
    if config.model_hash is None:
        raise UserError(f"model: the run has its own, {config.model}; leave it out")
