"""What this machine has, and what will fit on it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch
from rich.table import Table

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


def examine() -> dict[str, Any]:
    """Versions, device, memory (GiB), precision, and which models fit."""
    name, memory = _accelerator()
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "device": name,
        "memory_gib": round(memory, 1),
        "bf16": not torch.cuda.is_available() or torch.cuda.is_bf16_supported(),
        "threads": torch.get_num_threads(),
        "fits": {model: memory >= need for model, need in NEEDS.items()},
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
    return shown
