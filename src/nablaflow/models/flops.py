"""FLOPs of whatever runs in a context, by torch's own formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Adds up the FLOPs of each operation; `FlopCounterMode` does not work in `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def counted() -> Iterator[FlopCount]:
    """Counts FLOPs, attention's as the two products that it is: fused kernels may hide theirs."""
    with sdpa_kernel(SDPBackend.MATH), FlopCount() as counter:
        yield counter
