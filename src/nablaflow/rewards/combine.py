"""Weighted sums of rewards, such as ``warmth + 0.5*symmetry - brightness``.

    sum    = [sign] term { sign term }
    term   = [number "*"] spec
    sign   = "+" or "-", with spaces on both sides (the first one needs none)
    spec   = a name of the list, or path/to/file.py:function

The spaces tell a sign from a dash in a path. A path that itself holds `` - `` goes in a mapping.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from nablaflow.errors import UserError
from nablaflow.rewards.contract import Composite, NamedReward
from nablaflow.rewards.custom import is_custom, is_fitted
from nablaflow.typing import Batch

_SIGN = re.compile(r"\s+([+-])\s+")
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"(?:(?P<weight>{_NUMBER})\s*\*\s*)?(?P<spec>\S.*)")


@dataclass(frozen=True)
class WeightedSum(Composite):
    """A reward that is the weighted sum of others; ``weighted_sum`` makes one."""

    terms: tuple[tuple[float, NamedReward], ...]

    @property
    def name(self) -> str:
        """The sum as text: ``warmth + 0.5*symmetry - brightness``."""
        (first, *rest) = [(weight, _scaled(weight, reward.name)) for weight, reward in self.terms]
        head = f"-{first[1]}" if first[0] < 0 else first[1]
        return head + "".join(f" {'-' if weight < 0 else '+'} {text}" for weight, text in rest)

    @property
    def parts(self) -> tuple[NamedReward, ...]:
        return tuple(reward for _, reward in self.terms)

    def combine(self, scores: list[Batch]) -> Batch:
        weighted = [weight * score for (weight, _), score in zip(self.terms, scores, strict=True)]
        return torch.stack(weighted).sum(0)


def weighted_sum(weights: Mapping[str, Any], find: Callable[[str], NamedReward]) -> WeightedSum:
    """Add up rewards; one of weight 0 must exist too, but is never computed.

    Args:
        weights: spec of one reward to its weight. Any value, since it may come from a file.
        find: the reward that a spec means.

    Raises:
        UserError: a weight is not a finite number, all are 0, or there are none.
    """
    for spec, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise UserError(
                f"the weight of reward {spec!r} is {weight!r}: give a number "
                "(in YAML, write 1.0e-3 rather than 1e-3)"
            )
        if not math.isfinite(weight):
            raise UserError(f"the weight of reward {spec!r} is {weight}: give a finite number")
    terms = [(float(weight), find(spec)) for spec, weight in weights.items()]
    if not any(weight for weight, _ in terms):
        raise UserError("the reward has no term whose weight is not 0: give at least one")
    return WeightedSum(tuple((weight, reward) for weight, reward in terms if weight))


def parse(text: str) -> dict[str, float]:
    """Read a sum, in the grammar above, into spec to weight; weights of a repeated spec add up.

    Raises:
        UserError: the text is empty, or a term cannot be read.
    """
    body = text.strip()
    if not body:
        raise UserError("the reward is empty: give a name, or path/to/file.py:function")
    sign = body[0] if body[0] in "+-" else "+"
    pieces = [sign, *_SIGN.split(body.removeprefix(sign).strip())]
    weights: dict[str, float] = {}
    for sign, term in zip(pieces[::2], pieces[1::2], strict=True):
        weight, spec = _term(term, text)
        weights[spec] = weights.get(spec, 0.0) + (-weight if sign == "-" else weight)
    return weights


def _term(term: str, text: str) -> tuple[float, str]:
    found = _TERM.fullmatch(term)
    is_path = found is not None and (is_custom(found["spec"]) or is_fitted(found["spec"]))
    if found is None or (not is_path and re.search(r"[-+*]", found["spec"])):
        raise UserError(
            f"cannot read {term!r} in the reward {text!r}: write terms as name or number*name, "
            "with a space on both sides of + and -"
        )
    return float(found["weight"] or 1.0), found["spec"]


def _scaled(weight: float, name: str) -> str:
    return name if abs(weight) == 1.0 else f"{abs(weight):.12g}*{name}"
