"""What the processes of a run agree on: figures, a wish to stop, what the main one has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor


def wide(value: Tensor) -> Tensor:
    """In float64, which Apple's accelerator does not have."""
    return value.cpu().double() if value.device.type == "mps" else value.double()


def mean_figures(accelerator: Accelerator, figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over all processes, in float64."""
    stacked = torch.stack([wide(value.to(accelerator.device)) for value in figures.values()])
    reduced: Any = accelerator.reduce(stacked, reduction="mean")
    return dict(zip(figures, reduced.tolist(), strict=True))


def mean_of(accelerator: Accelerator, value: float) -> float:
    """The mean over all processes, in float32."""
    shared: Any = accelerator.reduce(
        torch.tensor(value, device=accelerator.device), reduction="mean"
    )
    return shared.item()


def on_any(accelerator: Accelerator, flag: bool) -> bool:
    """Whether it is set on one of them, so that all stop after the same update."""
    flags = torch.tensor(float(flag), device=accelerator.device)
    total: Any = accelerator.reduce(flags, reduction="sum")
    return total.item() > 0


def from_main(value: Any) -> Any:
    """The main process's, on all of them."""
    return broadcast_object_list([value])[0]
