"""Which layers of a network get a LoRA where nobody says so, and how much of it they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from nablaflow.errors import UserError
from nablaflow.models.four_bits import sizes_of

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of an attention layer, as diffusers calls them."""

RESIDUAL = ("conv1", "conv2", "conv_shortcut")
"""The convolutions of a residual block."""


FEW = 0.25
"""Share of a network's parameters below which attention's projections are not adapted alone."""


def automatic_targets(network: nn.Module) -> list[str]:
    """Attention's projections, and the residual blocks' convolutions where those hold little.

    The projections are 4 to 6 % of the usual unconditional UNets, 11 % of Stable Diffusion 1.5
    and of the embedded model, where a LoRA on them alone follows its target to 86 % on a learned
    reward, and one on the convolutions too to 101 % (docs/estimators.md).

    Raises:
        UserError: the network has neither.
    """
    layers = _plain_layers(network)
    wanted = ATTENTION + RESIDUAL if _share(network, layers) < FEW else ATTENTION
    found = [target for target in wanted if any(map(_ending(target), layers))]
    if not found:
        raise UserError(
            f"adapter.targets: auto finds neither attention nor residual blocks in a "
            f"{type(network).__name__}; name its layers, or use adapter.kind=full"
        )
    return found


def _share(network: nn.Module, layers: dict[str, nn.Module]) -> float:
    """Of the parameters, what attention's projections hold."""
    held = sum(
        sum(sizes_of(layer).values())
        for name, layer in layers.items()
        if any(_ending(target)(name) for target in ATTENTION)
    )
    return held / max(1, sum(sizes_of(network).values()))


def _plain_layers(network: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: part for name, part in network.named_modules() if isinstance(part, kinds)}


def _ending(target: str) -> Any:
    """Whether a layer's path is, or ends with, a name: as peft looks for its targets."""
    return lambda name: name == target or name.endswith(f".{target}")


def exact_targets(network: nn.Module, layers: Collection[str]) -> list[str]:
    """The shortest names that mean these layers, and no others if that can be, by how paths end."""
    known, wanted = _plain_layers(network), set(layers)
    return sorted({_shortest(path, known, wanted) for path in wanted})


def targeted(network: nn.Module, names: Collection[str]) -> set[str]:
    """Paths of the layers that peft adapts by these names."""
    known = _plain_layers(network)
    return {path for name in names for path in filter(_ending(name), known)}


def _shortest(path: str, known: Collection[str], wanted: set[str]) -> str:
    parts = path.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[-count:])
        # A number alone, as of to_out.0, says nothing to who reads it.
        if not name.isdecimal() and wanted.issuperset(filter(_ending(name), known)):
            return name
    return path


@dataclass(frozen=True)
class Coverage:
    """What of a network an adapter trains.

    Attributes:
        kind: ``lora`` or ``full``.
        layers: number of adapted layers by target; empty where all weights train.
        adapted: parameters of those layers, before the adapter.
        trained: parameters that train.
        total: parameters of the pretrained network.
    """

    kind: str
    layers: dict[str, int]
    adapted: int
    trained: int
    total: int

    def __str__(self) -> str:
        if self.kind == "full":
            return f"adapter: all {_count(self.total)} parameters of the network train"
        layers = ", ".join(f"{number} {target}" for target, number in self.layers.items())
        return (
            f"adapter: LoRA on {layers}: layers with {self.adapted / self.total:.0%} of the "
            f"network's {_count(self.total)} parameters; {_count(self.trained)} train"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the two shares."""
        return {
            "kind": self.kind,
            "layers": self.layers,
            "parameters": self.total,
            "adapted_share": self.adapted / self.total,
            "trained": self.trained,
            "trained_share": self.trained / self.total,
        }


def lora_coverage(network: nn.Module, targets: list[str]) -> Coverage:
    """What a LoRA on ``targets`` covers, told from the network that has it."""
    sizes = sizes_of(network)
    added = sum(size for name, size in sizes.items() if ".lora_" in name)
    bases = {name.split(".base_layer.")[0] for name in sizes if ".base_layer." in name}
    adapted = sum(size for name, size in sizes.items() if ".base_layer." in name)
    layers = Counter(t for t in targets for name in bases if _ending(t)(name))
    return Coverage("lora", dict(layers), adapted, added, sum(sizes.values()) - added)


def full_coverage(network: nn.Module) -> Coverage:
    total = sum(parameter.numel() for parameter in network.parameters())
    return Coverage("full", {}, total, total, total)


def _count(number: int) -> str:
    """A number of parameters in millions, or in thousands below one million."""
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number / 1e3:.3g} k"
