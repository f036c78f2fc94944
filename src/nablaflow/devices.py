"""Where tensors live: the devices of this machine, and one found by its name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from nablaflow.errors import UserError

AUTO = "auto"


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within this context operations keep the precision of their tensors.

    On shapes alone (the meta device) torch has no autocast, and says so.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def best_device() -> torch.device:
    """The first that works of cuda, mps, cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def is_here(device: torch.device) -> bool:
    """Whether this machine has it; of other kinds than cpu, cuda and mps it has none."""
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return not device.index and torch.backends.mps.is_available()
    return device.type == "cpu"


def named_device(name: str, field: str) -> torch.device:
    """The device that a user names, which may be another machine's.

    Args:
        name: ``auto``, the best there is here, or ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        field: the option or setting it was given in, for the message.

    Raises:
        UserError: it is no device.
    """
    if name == AUTO:
        return best_device()
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(
            f"{field}: no such device {name!r}; give auto, cpu, cuda, cuda:1 or mps"
        ) from None


def peak_device_mb(device: torch.device) -> float | None:
    """The most that tensors of this process took of a device at once so far, MB of 2**20 bytes.

    None where torch does not count it: of a processor, and of a GPU that is not CUDA's.
    """
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**20


def is_dtype(value: Any) -> bool:
    """Whether a network's weights can be of it: a floating dtype of torch's, and no name of one."""
    return isinstance(value, torch.dtype) and value.is_floating_point


def find_device(name: str, field: str) -> torch.device:
    """The device that a user names, see `named_device`.

    Raises:
        UserError: it is no device, or this machine has none of it.
    """
    device = named_device(name, field)
    if not is_here(device):
        raise UserError(f"{field}: there is no {name} here; use auto or cpu")
    return device
