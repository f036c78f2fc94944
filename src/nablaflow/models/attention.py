"""Attention by two matrix products, or fused: which of the two a network computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn


def use_plain_attention(network: nn.Module) -> None:
    """Attention as two matrix products: it can be differentiated twice, the fused one only once.

    Set for good and not around a call, since gradient checkpointing makes the call again later.
    """
    for part in _attentions(network):
        part.set_processor(AttnProcessor())


@contextmanager
def fused_attention(network: nn.Module) -> Iterator[None]:
    """Within this context attention is computed as in a stock pipeline, to the last digit."""
    before = [(part, part.processor) for part in _attentions(network)]
    for part, _ in before:
        stock: Any = AttnProcessor2_0()
        part.set_processor(stock)
    try:
        yield
    finally:
        for part, processor in before:
            part.set_processor(processor)


def _attentions(network: nn.Module) -> list[Attention]:
    return [part for part in network.modules() if isinstance(part, Attention)]
