"""A checkpoint's policy into a network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.adapters import load_trainable_state
from nablaflow.storage.checkpoint import load_policy


def load_policy_state(network: torch.nn.Module, folder: Path, model: str) -> None:
    """Put a checkpoint's policy into a network, and leave the rest of it unread.

    Args:
        model: what the run's configuration calls it, for the message.

    Raises:
        DamagedCheckpoint: the file is damaged.
        UserError: it is of another model.
    """
    put_policy(network, load_policy(folder), folder, model)


def put_policy(
    network: torch.nn.Module, state: dict[str, Tensor], folder: Path, model: str
) -> None:
    """Put the policy that was read from a checkpoint into a network.

    Raises:
        UserError: it is of another model.
    """
    try:
        load_trainable_state(network, state)
    except ValueError as error:
        raise UserError(f"{folder}: {error}; is {model} the run's own?") from error
