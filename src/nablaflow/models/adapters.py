"""The policy beside the reference: a LoRA on the network, or a second, fully trained network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from nablaflow.errors import UserError
from nablaflow.models.divided import part_like
from nablaflow.models.live import with_the_same_weights
from nablaflow.models.lora_targets import (
    Coverage,
    full_coverage,
    lora_coverage,
)

ADAPTER = "default"


@runtime_checkable
class Adapter(Protocol):
    """How the policy differs from the reference.

    Attributes:
        network: the policy.
        coverage: what of it trains.
    """

    network: nn.Module
    coverage: Coverage

    def active(self) -> nn.Module:
        """The network that predicts now: the policy, or the reference inside `reference`."""
        ...

    @contextmanager
    def reference(self) -> Iterator[None]: ...

    def scale(self, strength: float) -> None:
        """Make of the policy what lies between the reference, 0, and itself, 1, or beyond it."""
        ...

    def settle(self, strength: float) -> None:
        """The same for good: what then is at strength 1 is that."""
        ...


class LoraAdapter:
    """Low-rank updates of some linear or convolution layers (arXiv 2106.09685), float32 weights.

    Args:
        targets: names of the layers, matched from the end of their path, as peft does.
        rslora: scale them by alpha over the root of the rank (arXiv 2312.03732).
        dora: train the lengths of a weight's rows besides (arXiv 2402.09353).

    Raises:
        UserError: no layer of the network has such a name.
    """

    def __init__(
        self,
        network: nn.Module,
        rank: int,
        alpha: float,
        targets: list[str],
        *,
        rslora: bool = False,
        dora: bool = False,
    ) -> None:
        scale: Any = alpha  # peft's annotation is narrower than what it takes
        self.config = LoraConfig(
            r=rank,
            lora_alpha=scale,
            init_lora_weights="gaussian",
            target_modules=targets,
            use_rslora=rslora,
            use_dora=dora,
        )
        network.requires_grad_(False)
        try:
            inject_adapter_in_model(self.config, network, ADAPTER)
        except ValueError as error:
            if "not supported" not in str(error):
                raise UserError(f"adapter.targets: no layer's name ends in {targets}") from error
            raise UserError(
                f"adapter.targets: not all of {targets} are linear or convolution layers; name the "
                "layers inside, such as to_out.0 for to_out"
            ) from error
        self.network = network
        found = {n: part for n, part in network.named_modules() if isinstance(part, BaseTunerLayer)}
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in found):
                raise UserError(f"adapter.targets: no layer is called {target}; leave it out")
        self._layers, self._strength = list(found.values()), 1.0
        self.targets, self.coverage = targets, lora_coverage(network, targets)
        for parameter in trainable_parameters(network):
            parameter.data = parameter.data.float()

    def active(self) -> nn.Module:
        return self.network

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._enable(False)
        try:
            yield
        finally:
            self._enable(True)

    @property
    def factor(self) -> float:
        """By which the product of the two factors is multiplied, the strength of `scale` in it."""
        rank = self.config.r
        alone = self.config.lora_alpha / (rank**0.5 if self.config.use_rslora else rank)
        return self._strength * alone

    @torch.no_grad()
    def scale(self, strength: float) -> None:
        self._strength = strength
        layer: Any  # peft's LoRA layers have it, their common base does not
        for layer in self._layers:
            layer.set_scale(ADAPTER, strength)
            if self.config.use_dora:
                length = layer.lora_magnitude_vector[ADAPTER].weight
                before = layer.get_base_layer().weight.float().flatten(1).norm(dim=1)
                length.copy_(torch.lerp(before.view_as(length), length, strength))

    @torch.no_grad()
    def settle(self, strength: float) -> None:
        self.scale(strength)
        layer: Any
        for layer in self._layers:
            layer.lora_B[ADAPTER].weight.mul_(strength)
            layer.set_scale(ADAPTER, 1.0)
        self._strength = 1.0

    def _enable(self, enabled: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(enabled)


class FullAdapter:
    """Every weight of the network trains, in memory of its own; the given ones are the reference's.

    So they stay as they are for whoever holds them besides, as with a `LivePipeline`.
    """

    def __init__(self, network: nn.Module) -> None:
        self._frozen = with_the_same_weights(network).requires_grad_(False).eval()
        for parameter in network.parameters():
            parameter.data = parameter.detach().float().clone()
        self.network = network.float().requires_grad_(True)
        self.coverage = full_coverage(network)
        self._policy_active = True

    def active(self) -> nn.Module:
        return self.network if self._policy_active else self._frozen

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._policy_active = False
        try:
            yield
        finally:
            self._policy_active = True

    @torch.no_grad()
    def scale(self, strength: float) -> None:
        """Between the weights of the two, not their predictions (WiSE-FT, arXiv 2109.01903)."""
        for own, frozen in zip(self.network.parameters(), self._frozen.parameters(), strict=True):
            own.copy_(torch.lerp(frozen.float(), own, strength))

    def settle(self, strength: float) -> None:
        self.scale(strength)  # which has no other way


def trainable_parameters(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def trainable_state(network: nn.Module, device: torch.device | None = None) -> dict[str, Tensor]:
    """Name to a detached copy of each parameter that trains.

    Args:
        device: of the copies; None: the parameter's own.
    """
    return {
        name: parameter.detach().to(device or parameter.device, copy=True)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def load_trainable_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Put `trainable_state` back.

    Raises:
        ValueError: the names or shapes are another network's.
    """
    own = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in own.items()} != {n: value.shape for n, value in state.items()}:
        raise ValueError("the saved parameters are another network's")
    for name, parameter in own.items():
        parameter.copy_(part_like(state[name], parameter))


@contextmanager
def swapped(network: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Within this context the trainable parameters are ``state``: an average, say."""
    before = trainable_state(network)
    load_trainable_state(network, state)
    try:
        yield
    finally:
        load_trainable_state(network, before)
