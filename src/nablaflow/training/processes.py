"""What the processes of a run agree on: figures, a wish to stop, what the main one has found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

BUCKET = 25 * 2**20  # bytes of gradients that are averaged at once, as torch's own DDP does


def average_over_processes(accelerator: Accelerator, gradients: Sequence[Tensor]) -> None:
    """Put the mean over all processes in place of each gradient, some megabytes at a time.

    Every process must have the same ones in the same order.
    """
    if accelerator.num_processes == 1:
        return
    for bucket in buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        mean: Any = accelerator.reduce(flat, reduction="mean")
        sizes = [gradient.numel() for gradient in bucket]
        for gradient, part in zip(bucket, mean.split(sizes), strict=True):
            gradient.copy_(part.view(gradient.shape))


def share_weights(accelerator: Accelerator, parameters: Sequence[Tensor]) -> None:
    """Put the main process's values of parameters that train in place of all processes'."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.data.copy_(broadcast(parameter.data))


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, of one type in each and `BUCKET` bytes at most if not one."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        full = size + tensor.nbytes > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


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
