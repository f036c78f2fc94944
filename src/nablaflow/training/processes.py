"""What the processes of a run agree on: figures, a wish to stop, what the main one has found.

What one process does alone may fail there alone, and the others would wait for it: `by_main` has
them fail alike, and `in_words` and `of_words` carry the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from nablaflow.errors import ExportError, TrainingStopped, UserError, one_line

Found = TypeVar("Found")
KINDS = {kind.__name__: kind for kind in (UserError, TrainingStopped, ExportError)}
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


def by_main(accelerator: Accelerator, work: Callable[[], Found]) -> Found:
    """What the main process finds alone, on all of them; every process must call it.

    Raises:
        UserError, TrainingStopped, ExportError: what it raised there; so does every other process,
            in the same words.
    """
    if accelerator.num_processes == 1:
        return work()
    found: Any = None
    failure: BaseException | None = None
    if accelerator.is_main_process:
        try:
            found = work()
        except (Exception, SystemExit) as error:
            failure = error
    found, told = from_main((found, failure and in_words(failure)))
    if failure is not None:
        raise failure
    if told is not None:
        raise of_words(*told, process=0)
    return found


def in_words(error: BaseException) -> tuple[str, str]:
    """The kind and the line of an error, for other processes."""
    kind = type(error).__name__
    return (kind, str(error)) if kind in KINDS else ("", one_line(f"{kind}: {error}"))


def of_words(kind: str, line: str, process: int) -> Exception:
    """What `in_words` was given; a `TrainingStopped` of a fault, whose traceback is elsewhere.

    Args:
        process: that it was raised on.
    """
    if kind:
        return KINDS[kind](line)
    return TrainingStopped(f"process {process} of this launch ended by a fault ({line})")
