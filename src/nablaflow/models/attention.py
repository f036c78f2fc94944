"""Attention by two matrix products, or fused: which of the two a network computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Unfused:
    """A stock processor of attention that may not use a fused kernel.

    Those of the transformers have no other rendering than torch's own function, which computes by
    matrix products if it is told to.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock
        # diffusers looks here for the arguments that it may give, and drops others.
        vars(self)["__call__"] = stock.__call__

    def __call__(self, *args: Any, **options: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return self.stock(*args, **options)


def use_plain_attention(network: nn.Module) -> None:
    """Attention as two matrix products: it can be differentiated twice, the fused one only once.

    Set for good and not around a call, since gradient checkpointing makes the call again later.
    """
    for part in _attentions(network):
        part.set_processor(_plain(part.processor))


@contextmanager
def fused_attention(network: nn.Module) -> Iterator[None]:
    """Within this context attention is computed as in a stock pipeline, to the last digit."""
    before = [(part, part.processor) for part in _attentions(network)]
    for part, processor in before:
        part.set_processor(_stock(processor))
    try:
        yield
    finally:
        for part, processor in before:
            part.set_processor(processor)


def _plain(processor: Any) -> Any:
    if isinstance(processor, AttnProcessor2_0):
        return AttnProcessor()
    return processor if isinstance(processor, AttnProcessor | Unfused) else Unfused(processor)


def _stock(processor: Any) -> Any:
    if isinstance(processor, AttnProcessor):
        return AttnProcessor2_0()
    return processor.stock if isinstance(processor, Unfused) else processor


def _attentions(network: nn.Module) -> list[Any]:
    return [part for part in network.modules() if hasattr(part, "set_processor")]
