"""Networks and tensors that torch.distributed divides among processes, and what they are whole.

FSDP2 puts a class of its own in the place of a module's, which cannot be copied, and whose name no
other library knows. So a shell is kept from before: the modules, with parameters that take no
memory. What divided tensors are is imported only where there may be some, since it takes a second.
"""

from __future__ import annotations

import copy
import sys
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_SHELLS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def keep_shell(network: nn.Module) -> None:
    """Remember what a network is made of; `plain_copy` needs it once it is divided."""
    empty: dict[int, Any] = {
        id(value): nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
        for value in network.parameters()
    }
    _SHELLS[network] = copy.deepcopy(network, empty)


def plain_copy(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy with weights of its own; of a divided network while its weights are gathered.

    Args:
        device: of the copy.
        dtype: of the copy's weights, and of its buffers with a fraction.
    """
    shell = _SHELLS.get(network)
    if shell is None:
        kept = [*network.parameters(), *network.buffers()]
        return copy.deepcopy(network, {id(value): _own(value, device, dtype) for value in kept})
    made = copy.deepcopy(shell)
    for name, value in network.named_parameters():
        module, _, own = name.rpartition(".")
        setattr(made.get_submodule(module), own, _own(value, device, dtype))
    return made.to(device, dtype)


def _own(value: Tensor, device: torch.device, dtype: torch.dtype) -> Any:
    whole = not value.is_floating_point()
    made = value.detach().to(device, value.dtype if whole else dtype, copy=True)
    if isinstance(value, nn.Parameter):
        return nn.Parameter(made, requires_grad=value.requires_grad)
    return made


def is_divided(value: Any) -> bool:
    """Whether it is a tensor of which each process has a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def part_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor that all have, as a parameter is divided; or all of it."""
    if not is_divided(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor

    like: Any = parameter
    given = whole.to(parameter.device).contiguous()
    return distribute_tensor(given, like.device_mesh, like.placements, src_data_rank=None)


def whole_of(value: Any) -> Any:
    """Plain data with every divided tensor in it gathered; all processes must call it."""
    if is_divided(value):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole_of(inner) for key, inner in value.items()}
    return [whole_of(inner) for inner in value] if isinstance(value, list) else value
