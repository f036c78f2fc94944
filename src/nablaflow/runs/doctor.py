"""What this machine has, and what will fit on it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch
from rich.table import Table

from nablaflow.models import (
    AdapterSettings,
    SamplerSettings,
    load_model,
    load_pipeline,
    model_source,
)

PACKAGES = ("nablaflow", "torch", "diffusers", "transformers", "peft", "accelerate")

# Least memory in GiB to train a LoRA with one transition at a time: weights, the activations of
# the denoiser, and those of the float32 decoder under the reward gradient. Rough, on purpose.
NEEDS = {
    "nano (embedded)": 1.0,
    "Stable Diffusion 1.5, bf16, gradient checkpointing": 12.0,
    "Stable Diffusion 1.5, bf16": 20.0,
    "Stable Diffusion 2.1 (768), bf16, gradient checkpointing": 22.0,
}


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
        model: ``nano``, a diffusers folder, or a hub id.

    Raises:
        UserError: there is no such model.
    """
    name, memory = _accelerator()
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "device": name,
        "memory_gib": round(memory, 1),
        "bf16": not torch.cuda.is_available() or torch.cuda.is_bf16_supported(),
        "threads": torch.get_num_threads(),
        "fits": {which: memory >= need for which, need in NEEDS.items()},
        "adapter": _adapter(model),
    }


def table(found: dict[str, Any]) -> Table:
    """`examine` for people."""
    shown = Table(show_header=False)
    for key in ("python", "device", "memory_gib", "threads", "bf16"):
        shown.add_row(key.replace("_", " "), str(found[key]))
    for package, number in found["packages"].items():
        shown.add_row(package, number)
    for model, fits in found["fits"].items():
        shown.add_row(f"fits: {model}", "yes" if fits else f"no, needs {NEEDS[model]:g} GiB")
    adapter = found["adapter"]
    shown.add_row(f"adapter: {adapter['model']}", adapter["text"].removeprefix("adapter: "))
    return shown
