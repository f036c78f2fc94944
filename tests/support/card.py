"""A second device on a machine that has none: its tensors hold real data, and may not meet others.

What a GPU's user meets first is an operation between devices, which on a processor nothing shows.
Here `CARD` is a device of torch's own for backends in Python, and a tensor on it is a wrapper of
one on the processor. Each operation is done there, unless it mixes devices as no GPU would allow.
It has no autocast, which torch gives such a device no kernels for. The device stays registered for
the process, so that it belongs into one of its own.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten: Any = torch.ops.aten
BY_INDEX = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
BY_INDEX |= {aten._index_put_impl_.default, aten._unsafe_index.Tensor}
"""Their indices may lie on the processor; what they read from and what they put may not."""
SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
BETWEEN = {aten.copy_.default, aten.copy.default}


class MixedDevices(RuntimeError):
    """An operation has tensors of both devices, as no GPU allows."""


class Backend:
    """What torch asks of the module of a device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """It has no generator: noise is drawn by those that are passed in."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """It has no generator."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("card", Backend())
CARD = torch.device("card", 0)


class Memory:
    """Bytes that tensors hold on the card, each storage once: now, and at most so far."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.shares: Counter[int] = Counter()


MEMORY = Memory()


class Share:
    """A tensor's part in the memory of its storage."""

    def __init__(self, held: Tensor) -> None:
        self.held, storage = held, held.untyped_storage()
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        if not MEMORY.shares[self.place]:
            MEMORY.now += self.size
            MEMORY.most = max(MEMORY.most, MEMORY.now)
        MEMORY.shares[self.place] += 1

    def __deepcopy__(self, memo: dict[int, Any]) -> Share:
        return Share(copy.deepcopy(self.held, memo))

    def __del__(self) -> None:
        MEMORY.shares[self.place] -= 1
        if not MEMORY.shares[self.place]:
            MEMORY.now -= self.size


class OnCard(Tensor):
    """A tensor whose device is `CARD`; ``held`` has its data, ``share`` counts them."""

    held: Tensor
    share: Share

    @staticmethod
    def __new__(cls, held: Tensor, *, requires_grad: bool = False) -> OnCard:
        if isinstance(held, OnCard) or held.is_meta:  # accelerate makes parameters anew
            return nn.Parameter(held, requires_grad)  # type: ignore[return-value]
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CARD,
        )
        made.held = held
        made.share = Share(held)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file it is what ``map_location="cpu"`` makes of it."""
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


def operate(func: Any, args: Any, kwargs: Any) -> Any:
    """Do it on the processor, and put the result where a GPU's would be."""
    wanted = kwargs.get("device")
    to_card = wanted is not None and torch.device(wanted).type == "card"
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    here = [value for value in given if isinstance(value, OnCard)]
    if here and func not in BETWEEN:
        _refuse_mixed(func, args, given)
    if to_card:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map_only(OnCard, lambda value: value.held, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not to_card and not (here and wanted is None):
        return tree_map_only(Tensor, Tensor.clone, out) if here else out
    known = {id(value.held): value for value in here}  # what was changed in place is itself

    def placed(value: Tensor) -> Tensor:
        if id(value) in known:
            return known[id(value)]
        return OnCard(value.resolve_conj().resolve_neg())  # a wrapper has no such marks

    out = tree_map_only(Tensor, placed, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here else out


def _refuse_mixed(func: Any, args: Any, given: list[Tensor]) -> None:
    held = [args[0], *args[2:3]] if func in BY_INDEX else given
    other = [value for value in held if isinstance(value, Tensor) and not isinstance(value, OnCard)]
    shapes = [tuple(value.shape) for value in other if value.ndim]
    if shapes:
        raise MixedDevices(f"{func}: {shapes} of the processor beside what is on the card")


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


class _Memory(TorchFunctionMode):
    """Python's lists and files of tensors read memory, past all operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func is Tensor.new_tensor and isinstance(args[0], OnCard):
            return args[0].held.new_tensor(*args[1:], **kwargs).to(CARD)
        if func == SET_DATA and isinstance(args[0], OnCard):
            args[0].held, args[0].share = args[1].held, args[1].share
        if func is Tensor.tolist and isinstance(args[0], OnCard):
            return args[0].cpu().tolist()
        if func is Tensor.untyped_storage and isinstance(args[0], OnCard):
            return args[0].held.untyped_storage()
        return func(*args, **kwargs)


@contextmanager
def card() -> Iterator[None]:
    """Within this context tensors can be on `CARD`, and parameters stay themselves on their way."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Memory(), _Operations():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
