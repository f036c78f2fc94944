"""The contract of a value-gradient estimator: trajectories in, grad V at their transitions out."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators.contrastive import LogFlowFit
from nablaflow.estimators.path import Path, ValueGradients
from nablaflow.models import DiffusionModel, FlowScore, OldPolicy
from nablaflow.rewards import NamedReward
from nablaflow.settings import Settings

FOUND = ("gamma", "log_flow")
"""Groups of a checkpoint's tensors: what `Networks.found` has."""


@dataclass(frozen=True)
class Networks:
    """What estimators and methods work with.

    Attributes:
        flow: the flow-score network, or None where it is off.
        flow_target: its average, read where a target must not follow the network.
        measured_gamma: by k, see the module of that name; None where no setting asks for it.
        log_flow: fitted to the reference, see `nablaflow.estimators.contrastive`; None likewise.
        old_policy: for methods that have one, see `Method.old_policy_decay`.
        decode_batch: images at once through the decoder under a reward's gradient; None: all.
    """

    model: DiffusionModel
    reward: NamedReward
    flow: FlowScore | None = None
    flow_target: FlowScore | None = None
    measured_gamma: Float[Tensor, "levels"] | None = None
    old_policy: OldPolicy | None = None
    decode_batch: int | None = None
    log_flow: LogFlowFit | None = None

    @property
    def fitted_value(self) -> LogFlowFit:
        """`log_flow`, where a method needs it.

        Raises:
            UserError: nobody has fitted it.
        """
        if self.log_flow is None:
            raise UserError(
                "method.value: contrastive is fitted before the first update; give "
                "Networks(log_flow=…) what nablaflow.estimators.fit_log_flow returns"
            )
        return self.log_flow

    def found(self) -> dict[str, dict[str, Tensor]]:
        """What was found of the reference before the first update: tensors for a checkpoint."""
        tensors = {}
        if self.measured_gamma is not None:
            tensors["gamma"] = {"gamma": self.measured_gamma.clone()}
        if self.log_flow is not None:
            tensors["log_flow"] = self.log_flow.state()
        return tensors

    def take(self, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        """Have, in place, what `found` gave."""
        if self.measured_gamma is not None:
            self.measured_gamma.copy_(tensors["gamma"]["gamma"])
        if self.log_flow is not None:
            self.log_flow.take(tensors["log_flow"])


class Estimator(Settings, abc.ABC):
    """Settings of one estimate of grad V. Subclasses are final, a file each.

    Attributes:
        needs_states: whether it reads `Path.states`.
        uses_flow: whether it reads the flow network, and says what that should be.
        reads_kernels: whether it says so from how far the policy's kernels are moved, which is
            grad V where the published step has moved them.
    """

    needs_states: ClassVar[bool] = False
    uses_flow: ClassVar[bool] = False
    reads_kernels: ClassVar[bool] = False

    @abc.abstractmethod
    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        """Estimates at ``path.transitions``, in their order.

        Raises:
            UserError: the reward's gradient is not finite.
            FloatingPointError: it is, and what the networks make of it is not.
        """

    @property
    def needs_measured_gamma(self) -> bool:
        """Whether it reads `Networks.measured_gamma`."""
        return getattr(self, "gamma", None) == "measured"

    def check(self, process: ReverseProcess) -> None:
        """Raise `UserError` where the settings do not fit the sampler."""

    def check_reward_counts(self, process: ReverseProcess, levels: Int[Tensor, "steps"]) -> None:
        """Raise `UserError` where no estimate has the reward in it, so that nothing trains.

        Args:
            levels: of the states whose value gradient is asked for.
        """

    def rewardless_levels(self, process: ReverseProcess) -> Bool[Tensor, "levels"]:
        """By k, whether the estimate has no reward in it, but trajectories that are weighted by it.

        There it must be nothing, on average, along the reference's: see
        `nablaflow.estimators.pull`.
        """
        return torch.zeros(process.steps + 1, dtype=torch.bool)
