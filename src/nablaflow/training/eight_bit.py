"""AdamW whose two moments are 8-bit numbers (arXiv 2110.02861), from bitsandbytes.

A parameter's moments take two bytes where they take eight, which counts where all weights train;
those of a LoRA are few.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from nablaflow.errors import UserError, installing

FIELD = "optimizer.name: adamw8bit"


def eight_bit_adamw(device: torch.device) -> type[torch.optim.Optimizer]:
    """The class, for parameters on a device.

    Raises:
        UserError: bitsandbytes is not installed, or the device is none that it works on.
    """
    try:
        package: Any = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise UserError(
            f"{FIELD} needs bitsandbytes ({error}); {installing('bitsandbytes')}, or use "
            "optimizer.name=adamw"
        ) from error
    if device.type != "cuda":
        raise UserError(
            f"{FIELD} works on a GPU, and training is on the {device.type}; use "
            "optimizer.name=adamw"
        )
    return package.optim.AdamW8bit


def refuse_divided() -> None:
    """Its moments are of whole parameters, which no process has under FSDP2.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{FIELD} cannot be divided among processes (FSDP2); use optimizer.name=adamw, or DDP"
    )
