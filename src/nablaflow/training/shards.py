"""FSDP2: the policy's weights, and what AdamW keeps of them, divided among the processes.

A rollout is dozens of passes, and an estimate of a value gradient makes as many as its own
trajectories ask for, on each process another number. So weights are gathered once an update, for
all of it (``reshard_after_forward: false``, ZeRO's stage 2 but for the gradients, arXiv
1910.02054), and each process steps on its own part: AdamW's two moments, the averages and the
weights between updates take the memory of one process over their number. What does not train is
whole on each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from nablaflow.models.adapters import trainable_parameters
from nablaflow.models.divided import keep_shell, part_like


@final
class Shards:
    """A network whose trainable parameters are divided; they are gathered but within `divided`.

    Args:
        processes: among which it is divided, all of the default group.
    """

    def __init__(self, network: nn.Module, device: torch.device, processes: int) -> None:
        keep_shell(network)
        for parameter in trainable_parameters(network):  # convolutions may be channels_last
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(device.type, (processes,))
        frozen = {value for value in network.parameters() if not value.requires_grad}
        for part in (*_blocks(network), network):
            fully_shard(part, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
        self._network: Any = network
        self._network.set_requires_gradient_sync(False)  # the stepper averages them, once
        self._network.set_reshard_after_backward(False)
        self._parts: list[Any] = [m for m in network.modules() if isinstance(m, FSDPModule)]

    @contextmanager
    def divided(self) -> Iterator[None]:
        """Within this context each process has its part of the parameters and of their gradients.

        The gradients are those of the whole, and gone afterwards.
        """
        whole = {name: value.grad for name, value in self._network.named_parameters()}
        self._network.zero_grad(set_to_none=True)
        for part in self._parts:
            part.reshard()
        for name, value in self._network.named_parameters():
            gradient = whole[name]
            if gradient is not None:
                value.grad = part_like(gradient, value)
        try:
            yield
        finally:
            self._network.zero_grad(set_to_none=True)
            self.gather()

    def gather(self) -> None:
        """Bring the whole parameters to each process."""
        for part in self._parts:
            part.unshard()


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that diffusers says a network repeats, which are gathered one by one."""
    names = getattr(network, "_repeated_blocks", None) or ()
    return [part for part in network.modules() if type(part).__name__ in names]
