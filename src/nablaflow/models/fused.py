"""A model with a LoRA fused into it first, so that the two together are the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError
from nablaflow.models.live import LivePipeline
from nablaflow.models.lora_loading import load_into
from nablaflow.models.lora_places import Denoiser
from nablaflow.quiet import quiet_libraries

SETTING = "model_lora"


@dataclass(frozen=True)
class WithLora:
    """Where a model comes from, and the LoRA that belongs to it.

    Attributes:
        model: a folder or a hub id, or a pipeline that the user holds, which stays as it is.
        scale: by which the LoRA's update is multiplied.
    """

    model: str | LivePipeline
    file: Path
    scale: float

    def __str__(self) -> str:
        return f"with {self.file} at {self.scale:g} fused into it"


@quiet_libraries()
def fuse(pipeline: Any, denoiser: Denoiser, file: Path, scale: float) -> Any:
    """The same pipeline, a LoRA's update in the weights of its denoiser and text encoders.

    Raises:
        UserError: it takes none, or the file is none or for another base.
    """
    load_into(pipeline, denoiser, file, SETTING)
    try:
        # All parts that it loads one into: by default FLUX's text encoder is left out.
        parts = list(pipeline._lora_loadable_modules)
        pipeline.fuse_lora(components=parts, lora_scale=scale, safe_fusing=True)
    except (ValueError, RuntimeError) as error:  # what is not finite; a bias that has no place
        raise UserError(
            f"{SETTING}: {file} cannot be fused at {scale:g} ({error}); get it again, or give "
            "another"
        ) from error
    pipeline.unload_lora_weights()
    return pipeline
