"""A checkpoint's policy into a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.estimators.contract import FOUND
from nablaflow.models.adapters import load_trainable_state
from nablaflow.storage.checkpoint import calibration_in, load_checkpoint


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


@dataclass(frozen=True)
class LastPolicy:
    """What a measurement needs of a run's last checkpoint, which is read once.

    Attributes:
        folder: of the checkpoint.
        policy: its parameters.
        reward: what a reward that remembers has in it.
        guard: what the guard has in it; None without one.
        calibrated: what ``training.calibrate`` made of it; None: nothing.
        found: of the reference before the first update, see `Networks.found`.
    """

    folder: Path
    update: int
    policy: dict[str, Tensor]
    reward: dict[str, Any]
    guard: dict[str, Any] | None
    calibrated: dict[str, Any] | None = None
    found: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> LastPolicy:
        """The optimizer's part, which is read to know that it is whole, is not kept.

        Raises:
            DamagedCheckpoint: a file is damaged.
        """
        found = load_checkpoint(folder)
        state, policy = found.state, found.tensors["policy"]
        of_reference = {name: found.tensors[name] for name in FOUND if name in found.tensors}
        calibrated = calibration_in(state, found.update)
        memory, guard = state.get("reward", {}), state.get("guard")
        return cls(folder, found.update, policy, memory, guard, calibrated, of_reference)

    def put(self, network: torch.nn.Module, model: str) -> None:
        """Put it into a network, as `put_policy`."""
        put_policy(network, self.policy, self.folder, model)
