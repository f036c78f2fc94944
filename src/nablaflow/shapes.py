"""Work done on shapes alone: what memory it would take, without any of it.

Tensors on torch's meta device have a shape and a type and no data. Within `Shapes` code that was
written for real ones runs on them as it is: where it asks for a value it is told one, and tensors
that do have data, such as step indices and tables of the sampler, keep theirs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")
_aten = torch.ops.aten
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}


@final
class Shapes(TorchDispatchMode):
    """Counts the bytes of all meta tensors that are made within it.

    A truth value that is asked of a tensor without data is True, a whole number 0, another 1; all
    its elements are taken to be non-zero. What is copied to another device stays here.

    Attributes:
        now: bytes that are alive.
        peak: the most that were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._attention = ExitStack()

    def __enter__(self) -> Shapes:
        super().__enter__()
        self._attention.enter_context(_fused_attention())
        return self

    def __exit__(self, *raised: Any) -> None:
        self._attention.close()
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if any(value.is_meta for value in given):
            if func is _aten._local_scalar_dense.default:
                return _told(args[0].dtype)
            if func is _aten.nonzero.default:
                return _all_of(args[0])
            args, kwargs = _on_meta(func, args, kwargs, all(value.is_meta for value in given))
        there = {_place(value) for value in given if value.is_meta}
        out = func(*args, **kwargs)
        for value in tree_leaves(out):
            # A view of a weight, say, is of what was there before, and no byte more.
            if isinstance(value, Tensor) and value.is_meta and _place(value) not in there:
                self._note(value)
        return out

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = _place(value)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@contextmanager
def weights_come_back() -> Iterator[None]:
    """Networks that are moved to the meta device within this context have their weights after it.

    A user's reward may move its network to wherever the images are, and would have lost them. A
    network that is made within it stays where it is.
    """
    held: list[tuple[dict[str, Any], str, Tensor]] = []
    made: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    module: Any = nn.Module
    apply, init = module._apply, module.__init__

    def applied(network: nn.Module, *args: Any, **named: Any) -> nn.Module:
        if network not in made:
            for values in (network._parameters, network._buffers):
                kept = {name: value for name, value in values.items() if value is not None}
                held.extend(
                    (values, name, value) for name, value in kept.items() if not value.is_meta
                )
        return apply(network, *args, **named)

    def begun(network: nn.Module, *args: Any, **named: Any) -> None:
        init(network, *args, **named)
        made.add(network)

    module._apply, module.__init__ = applied, begun
    try:
        yield
    finally:
        module._apply, module.__init__ = apply, init
        for values, name, value in reversed(held):  # the first that was there comes last
            if (now := values.get(name)) is not None and now.is_meta:
                values[name] = value


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On shapes torch would write attention's matrix out, which no device with a kernel does.

    A network that may not use the kernel (`nablaflow.models.attention.Unfused`) does write it out.
    The function is replaced where networks look it up: a layer that is computed again in the
    backward pass must find the same.
    """
    plain = functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> Tensor:
        further = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
        asked = dict(zip(further, given, strict=False)) | named
        same = query.shape[-1] == key.shape[-1] == value.shape[-1]
        special = asked.get("attn_mask") is not None or asked.get("enable_gqa")
        unfused = not torch.backends.cuda.flash_sdp_enabled()  # a processor's kernel too
        if not query.is_meta or not same or special or unfused:
            return plain(query, key, value, *given, **named)
        causal, scale = asked.get("is_causal", False), asked.get("scale")
        fused = _aten._scaled_dot_product_flash_attention_for_cpu.default
        return fused(query, key, value, 0.0, causal, scale=scale)[0]

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def _place(value: Tensor) -> int:
    """Which storage a tensor is a view of."""
    return value.untyped_storage()._cdata


def _told(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 0


def _all_of(value: Tensor) -> Tensor:
    return torch.empty(value.numel(), value.ndim, dtype=torch.long, device=META)


def _on_meta(func: Any, args: Any, kwargs: Any, already: bool) -> tuple[Any, Any]:
    """The arguments with nothing beside tensors without data that has some."""
    if func is _aten._to_copy.default:
        return args, kwargs | ({"device": META} if kwargs.get("device") is not None else {})
    if func in _INDEXED:
        index = [part for given in args[1] for part in _index(given)]
        return (args[0].to(META), index, *_moved(args[2:])), kwargs
    if already or func is _aten.copy_.default:
        return args, kwargs
    return _moved(args), _moved(kwargs)


def _moved(values: Any) -> Any:
    return tree_map_only(Tensor, lambda value: value.to(META), values)


def _index(given: Tensor | None) -> list[Tensor | None]:
    """An index as whole numbers: of a mask those that it lets through, of one without data all."""
    if given is None:
        return [None]
    if given.dtype != torch.bool:
        return [given.to(META)]
    rows = _all_of(given) if given.is_meta else given.nonzero().to(META)
    return list(rows.unbind(1))
