"""A tilt's strength as a setting: a number, or a rule that a run finds the number by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, ValidationError, WrapValidator, model_validator
from torch import Tensor

from nablaflow.errors import nearest
from nablaflow.metrics.strength import beta_of_effective_share, beta_of_nats
from nablaflow.settings import Settings
from nablaflow.typing import Batch


class TiltRule(Settings):
    """A strength in a unit that every reward has."""

    effective_share: float | None = Field(
        default=None, gt=0.02, lt=1, description="of reference samples that count under the tilt"
    )
    nats: float | None = Field(
        default=None, gt=0, description="divergence of the tilt from the reference"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> TiltRule:
        if (self.effective_share is None) == (self.nats is None):
            raise ValueError("must have effective_share or nats, one of the two")
        return self

    def find(self, rewards: Batch, prompt_index: Tensor) -> float:
        """The beta for the rewards of reference samples.

        Raises:
            UserError: they do not tell it.
        """
        if self.nats is not None:
            return beta_of_nats(rewards, prompt_index, self.nats)
        assert self.effective_share is not None
        return beta_of_effective_share(rewards, prompt_index, self.effective_share)


AUTO = TiltRule(effective_share=1 / 3)
"""What ``auto`` is: where a third of the reference's samples counts."""


class Undecided(float):
    """A beta that is not found yet: no number, so that nothing computes with it by mistake."""

    rule: TiltRule

    def __new__(cls, rule: TiltRule) -> Undecided:
        self = super().__new__(cls, math.nan)
        self.rule = rule
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Undecided) and other.rule == self.rule

    def __hash__(self) -> int:
        return hash(self.rule)


def _number_or_rule(value: Any, number: Any) -> float:
    if isinstance(value, Undecided):
        return value
    if value == "auto":
        return Undecided(AUTO)
    if isinstance(value, Mapping):
        return Undecided(_rule(value))
    if isinstance(value, str | list):
        raise ValueError("must be a number, auto, {effective_share: …} or {nats: …}")
    return number(value)


def _rule(value: Mapping[str, Any]) -> TiltRule:
    """A rule, or one line on what is wrong with it."""
    for key in value:
        if key not in TiltRule.model_fields:
            raise ValueError(f"unknown key {key}; {nearest(str(key), TiltRule.model_fields)}")
    try:
        return TiltRule.model_validate(dict(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise ValueError(place + first["msg"].removeprefix("Value error, ")) from None


def _as_written(value: float) -> Any:
    if not isinstance(value, Undecided):
        return value
    return "auto" if value.rule == AUTO else value.rule.model_dump(exclude_none=True)


TiltStrength = Annotated[
    float, Field(ge=0), WrapValidator(_number_or_rule), PlainSerializer(_as_written)
]
"""A number, ``auto`` or a rule; an `Undecided` until a run has found it."""
