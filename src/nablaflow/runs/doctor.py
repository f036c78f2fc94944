"""What this machine has, and what will fit on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch
from rich.table import Table

from nablaflow.config.recipe import SHARED_ROLLOUT
from nablaflow.config.settings import TrainingSettings
from nablaflow.devices import best_device
from nablaflow.errors import UserError
from nablaflow.models import (
    AdapterSettings,
    SamplerSettings,
    load_model,
    load_pipeline,
    model_source,
)
from nablaflow.models.costs import (
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    STABLE_DIFFUSION_XL,
    Architecture,
    speed,
    update_flops,
)
from nablaflow.progress.lines import duration

PACKAGES = ("nablaflow", "torch", "diffusers", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class Need:
    """What a model asks for.

    Attributes:
        memory: least GiB to train a LoRA with one transition at a time: weights, the activations
            of the denoiser, and those of the float32 decoder under the reward gradient. Rough.
        architecture: None where an update takes seconds anywhere.
    """

    memory: float
    architecture: Architecture | None = None
    checkpointing: bool = False

    def update_seconds(self, speed: float) -> float | None:
        """Of an update of the default settings of `nablaflow.align`, at so many FLOPs a second."""
        if self.architecture is None:
            return None
        training, steps = TrainingSettings(), SamplerSettings().steps
        flops = update_flops(
            self.architecture.denoiser_flops,
            self.architecture.decoder_flops,
            trajectories=training.prompts_per_update * training.images_per_prompt,
            steps=steps,
            trained=round(training.transition_fraction * steps),
            checkpointing=self.checkpointing,
            updates_per_rollout=SHARED_ROLLOUT,
        )
        return flops / speed


NEEDS = {
    "nano (embedded)": Need(1.0),
    "Stable Diffusion 1.5, bf16, gradient checkpointing": Need(12.0, STABLE_DIFFUSION_1, True),
    "Stable Diffusion 1.5, bf16": Need(20.0, STABLE_DIFFUSION_1),
    "Stable Diffusion 2.1 (768), bf16, gradient checkpointing": Need(
        22.0, STABLE_DIFFUSION_2, True
    ),
    "Stable Diffusion XL (1024), bf16, gradient checkpointing": Need(
        32.0, STABLE_DIFFUSION_XL, True
    ),
}
HOW = (
    "FLOPs of an update of the default settings (32 trajectories of 20 steps, 4 of them trained; "
    f"{SHARED_ROLLOUT} updates share a rollout), "
    "counted on shapes, over what a convolution reaches on this device; the reward's are not in it"
)


def refuse_settings(settings: Sequence[str], options: Sequence[str]) -> None:
    """A model has no settings here, and no plan; a recipe does."""
    if settings:
        raise UserError(f"{settings[0]}: only a recipe has settings; give doctor RECIPE.yaml")
    if options:
        raise UserError(f"{options[0]}: only a recipe is planned; give doctor RECIPE.yaml")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _accelerator() -> tuple[str, float]:
    """Name and memory in GiB of where training would run."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory / 2**30
    memory = psutil.virtual_memory().available / 2**30
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)", memory
    return f"CPU, {os.cpu_count()} cores", memory


def _adapter(model: str) -> dict[str, Any]:
    """What the default adapter trains of a model."""
    pipeline = load_pipeline(model_source(model))
    loaded = load_model(pipeline, SamplerSettings(), AdapterSettings(), torch.device("cpu"))
    coverage = loaded.adapter.coverage
    return {"model": model, **coverage.as_dict(), "text": str(coverage)}


def examine(model: str = "nano") -> dict[str, Any]:
    """Versions, device, memory (GiB), precision, which models fit, and what is adapted of one.

    Args:
        model: ``nano``, ``flow``, a diffusers folder, or a hub id.

    Raises:
        UserError: there is no such model.
    """
    name, memory = _accelerator()
    device = best_device()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    adapter = _adapter(model)  # which refuses a model before the machine is measured
    reached = speed(device, dtype, time.perf_counter)
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "device": name,
        "memory_gib": round(memory, 1),
        "bf16": not torch.cuda.is_available() or torch.cuda.is_bf16_supported(),
        "threads": torch.get_num_threads(),
        "fits": {which: memory >= need.memory for which, need in NEEDS.items()},
        "needs_gib": {which: need.memory for which, need in NEEDS.items()},
        "update_seconds": {which: need.update_seconds(reached) for which, need in NEEDS.items()},
        "update_seconds_by": HOW,
        "adapter": adapter,
    }


def _verdict(found: dict[str, Any], model: str, fits: bool) -> str:
    need = f"{found['needs_gib'][model]:g} GiB"
    seconds = found["update_seconds"][model]
    if not fits:
        return f"no, needs {need}"
    if seconds is None:
        return f"yes, in {need}"
    return f"yes, in {need}; an update takes about {duration(seconds)}"


def table(found: dict[str, Any]) -> Table:
    """`examine` for people."""
    shown = Table(show_header=False)
    for key in ("python", "device", "memory_gib", "threads", "bf16"):
        shown.add_row(key.replace("_", " "), str(found[key]))
    for package, number in found["packages"].items():
        shown.add_row(package, number)
    for model, fits in found["fits"].items():
        shown.add_row(f"fits: {model}", _verdict(found, model, fits))
    if any(found["fits"][model] and found["update_seconds"][model] for model in found["fits"]):
        shown.add_row("an update's time", HOW)
    adapter = found["adapter"]
    shown.add_row(f"adapter: {adapter['model']}", adapter["text"].removeprefix("adapter: "))
    return shown
