"""Checkpoints: read without pickle, checked key by key."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nablaflow.errors import UserError

SHOWN_KEYS = 3
"""Names of a kind that a message about a checkpoint's keys gives; the count says the rest."""


def read_weights(path: Path, *, inside: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a file, on the processor; nothing in it is executed.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote, read with ``weights_only=True``.
        inside: key under which such a file keeps the tensors, if not at its top.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise _unreadable(path, error) from error
    if inside is not None:
        if not isinstance(found, Mapping) or inside not in found:
            raise UserError(f"{path} has no {inside!r}; give the checkpoint as it was published")
        found = found[inside]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"{path} holds no named tensors; give a state_dict")
    return {str(name): value for name, value in found.items()}


def check_keys(wanted: Iterable[str], found: Iterable[str], where: str | Path) -> None:
    """Compare the names of a checkpoint's tensors with those that a network has.

    Args:
        where: the file, for the message.

    Raises:
        UserError: some are missing or unknown; it gives the first of each kind and their number.
    """
    wanted, found = set(wanted), set(found)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    parts = [
        f"{len(names)} {what} ({_few(names)})"
        for names, what in ((missing, "missing"), (extra, "unknown"))
        if names
    ]
    if parts:
        raise UserError(
            f"{where} does not fit, keys are {' and '.join(parts)}; "
            "give the checkpoint of this network, as it was published"
        )


def load_weights(network: torch.nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Put a checkpoint into a network, every tensor of it and nothing else.

    Raises:
        UserError: a name or a shape differs.
    """
    own = network.state_dict()
    check_keys(own, state, where)
    wrong = [name for name, value in own.items() if value.shape != state[name].shape]
    if wrong:
        first, count = wrong[0], len(wrong)
        raise UserError(
            f"{where} does not fit, {count} of its tensors have another shape ({first}: "
            f"{tuple(state[first].shape)}, not {tuple(own[first].shape)}); "
            "give the checkpoint of this network"
        )
    network.load_state_dict(dict(state))


def _unreadable(path: Path, error: Exception) -> UserError:
    lines = str(error).strip().splitlines()
    reason = lines[0][:120] if lines else type(error).__name__
    return UserError(f"{path} cannot be read as weights ({reason}); get it again")


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_KEYS]) + (", …" if len(names) > SHOWN_KEYS else "")
