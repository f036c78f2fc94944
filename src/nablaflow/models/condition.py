"""What a batch is conditioned on; a family makes it and reads it, nobody above looks inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Tensors with one row for each state; empty for unconditional models.

    A family whose network is given more than these adds fields in a subclass.

    Attributes:
        hidden: embeddings of the prompt's tokens.
        pooled: of the prompt as a whole.
        negative: the other end of classifier-free guidance; None where there is no guidance.
    """

    hidden: Float[Tensor, "batch token width"] | None = None
    pooled: Float[Tensor, "batch feature"] | None = None
    negative: Condition | None = None

    def __getitem__(self, index: slice | Tensor) -> Condition:
        return self._each(lambda part: part[index])

    def expand(self, rows: int) -> Condition:
        """A single row as ``rows`` equal ones, without a copy."""
        return self._each(lambda part: part.expand(rows, *part.shape[1:]))

    def with_negative(self, negative: Condition) -> Condition:
        return replace(self, negative=negative)

    def zeroed(self) -> Condition:
        return self._each(torch.zeros_like)

    def to(self, device: torch.device) -> Condition:
        return self._each(lambda part: part.to(device))

    def bytes(self) -> int:
        """What the tensors take."""
        return sum(
            part.bytes() if isinstance(part, Condition) else part.numel() * part.element_size()
            for part in self._present().values()
        )

    @staticmethod
    def concatenate(conditions: Sequence[Condition]) -> Condition:
        """The rows of several conditions of one kind, one behind the other."""
        first = conditions[0]
        joined: dict[str, Any] = {}
        for name in first._present():
            parts: list[Any] = [getattr(condition, name) for condition in conditions]
            nested = isinstance(parts[0], Condition)
            joined[name] = Condition.concatenate(parts) if nested else torch.cat(parts)
        return replace(first, **joined)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        changed: dict[str, Any] = {}
        for name, part in self._present().items():
            nested = isinstance(part, Condition)
            changed[name] = part._each(change) if nested else change(part)
        return replace(self, **changed)

    def _present(self) -> dict[str, Any]:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class PaddedCondition(Condition):
    """Prompts that the network reads at their own lengths, padded at the end to be one tensor.

    Attributes:
        tokens: how many of the tokens of ``hidden`` are the prompt's.
    """

    tokens: Int[Tensor, "batch"] | None = None

    @staticmethod
    def of(hidden: Float[Tensor, "token width"], length: int) -> PaddedCondition:
        """One row, padded with zeros to ``length`` tokens."""
        room = torch.nn.functional.pad(hidden, (0, 0, 0, length - len(hidden)))
        return PaddedCondition(room[None], tokens=torch.tensor([len(hidden)]))

    def lengths(self) -> list[int]:
        """``tokens`` as numbers; of shapes alone, the most that there can be."""
        assert self.hidden is not None
        assert self.tokens is not None
        if self.tokens.is_meta:
            return [self.hidden.shape[1]] * len(self.tokens)
        return self.tokens.tolist()
