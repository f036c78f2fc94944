"""Learned scorers: a frozen network, loaded at its first call, in batches, on its own device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nablaflow.devices import is_here, without_autocast
from nablaflow.errors import UserError
from nablaflow.rewards.ahead import Begun, GoesAhead, Queue
from nablaflow.rewards.contract import NamedReward
from nablaflow.rewards.settings import Load, RewardSettings
from nablaflow.typing import Batch, Images

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class ScoringNetwork(torch.nn.Module, ABC):
    """A scorer's network: a backbone in the precision asked for, the rest in float32.

    Attributes:
        backbone: the large part.
        dtype: of the backbone; what goes in is cast to it, what comes out is cast to float32.
    """

    backbone: torch.nn.Module
    dtype: torch.dtype = torch.float32

    @abstractmethod
    def forward(self, images: Images, prompts: list[str]) -> Batch:
        """Scores of float32 images in [0, 1], one prompt each, in float32."""

    def freeze(self, dtype: torch.dtype, device: torch.device) -> ScoringNetwork:
        """For scoring only: no dropout, no gradient of weights, in its place and precision."""
        self.dtype = dtype
        self.backbone.to(dtype)
        return self.eval().requires_grad_(False).to(device)


class ScorerSettings(RewardSettings):
    """What all learned scorers have in common."""

    weights: str | None = Field(
        default=None, description="file or folder of the weights, or a hub id; null: the published"
    )
    revision: str | None = Field(
        default=None,
        description="branch, tag or commit of the weights on the hub; null: of the published ones "
        "a commit that is named in the code, of others the default branch",
    )
    batch: int = Field(default=8, ge=1, description="images that are scored at once")
    dtype: Literal["float32", "bf16"] = Field(
        default="float32", description="precision of the backbone; the score stays in float32"
    )
    device: str | None = Field(
        default=None, description="where the scorer lives, such as cuda:1; null: with the images"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute a batch again in the backward pass, to keep one batch at a time",
    )

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str | None) -> str | None:
        try:
            return value if value is None else str(torch.device(value))
        except RuntimeError:
            raise ValueError(f"no such device {value!r}; give cpu, cuda, cuda:1 or mps") from None

    def build(self, name: str, load: Load) -> NamedReward:
        self.check()
        return NamedReward(name, Scorer(self))

    def check(self) -> None:
        """Find out what can be before any weights are read.

        Raises:
            UserError: the device, or a package that this scorer needs, is not there.
        """
        if self.device is not None and not is_here(torch.device(self.device)):
            raise UserError(f"reward.device: there is no {self.device} here; leave it out")

    def source(self, repo: str, commit: str) -> tuple[str, str | None]:
        """Where the weights come from, and at which revision.

        Args:
            repo: of the published weights.
            commit: of it; it says nothing of any other source.
        """
        if self.weights is None:
            return repo, self.revision or commit
        return self.weights, self.revision

    @abstractmethod
    def network(self) -> ScoringNetwork:
        """The network with its weights, on the processor, in float32.

        Raises:
            UserError: they cannot be found or read, or are of another network.
        """


class Scorer(GoesAhead):
    """The reward that a scorer's settings describe; its network is loaded when first needed."""

    def __init__(self, settings: ScorerSettings) -> None:
        self.settings = settings
        self._networks: dict[torch.device, ScoringNetwork] = {}

    def __call__(self, images: Images, prompts: list[str]) -> Batch:
        """Score images in [0, 1], one prompt each, ``batch`` at once.

        Raises:
            UserError: at the first call, if the weights cannot be found or read.
        """
        return self._scored(self._network(self._place(images.device)), images, prompts)

    def is_apart(self, device: torch.device) -> bool:
        own = self._place(device)
        return (own.type, own.index or 0) != (device.type, device.index or 0)

    def begin(self, images: Images, prompts: list[str], queue: Queue) -> Begun:
        # Loading changes what belongs to the whole process, so it is not done beside other work.
        place, home = self._place(images.device), images.device
        network, there = self._network(place), images.detach().to(place)
        return queue.begin(lambda: self._scored(network, there, prompts).to(home))

    def _place(self, device: torch.device) -> torch.device:
        """Where images on a device are scored."""
        return torch.device(self.settings.device or device)

    def _scored(self, network: ScoringNetwork, images: Images, prompts: list[str]) -> Batch:
        size = self.settings.batch
        parts = [
            self._score(network, images[start : start + size], prompts[start : start + size])
            for start in range(0, len(images), size)
        ]
        return torch.cat(parts).to(images.device)

    def _score(self, network: ScoringNetwork, images: Tensor, prompts: list[str]) -> Batch:
        device = next(network.parameters()).device
        images = images.to(device, torch.float32)
        # The caller's device may be another one, for which autocast is off already.
        with without_autocast(device):
            if self.settings.gradient_checkpointing and images.requires_grad:
                found: Any = checkpoint(network, images, prompts, use_reentrant=False)
                return found
            return network(images, prompts)

    def _network(self, device: torch.device) -> ScoringNetwork:
        if device not in self._networks:
            from nablaflow.quiet import quiet_libraries  # loads the libraries, as the network does

            with quiet_libraries():
                dtype = DTYPES[self.settings.dtype]
                self._networks[device] = self.settings.network().freeze(dtype, device)
        return self._networks[device]
