"""A recipe of two small methods, so that little of its tests depends on which methods there are."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import Field

from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.methods import Losses, Method

MINIMAL: dict[str, Any] = {
    "reward": "warmth",
    "prompts": ["a circle", "a square"],
    "output_dir": "runs/test",
    "method": {"name": "first", "beta": 2.0},
    "training": {
        "updates": 10,
        "prompts_per_update": 2,
        "images_per_prompt": 4,
        "transition_fraction": 0.25,
    },
}


class First(Method):
    name = "first"
    needs_reward_gradient = False

    beta: float = Field(ge=0)
    gamma: Literal["one", "alpha_bar"] = "one"
    flow_weight: float = 1.0

    def losses(self, batch: Any, networks: Any) -> Losses:
        raise NotImplementedError


class Second(Method):
    name = "second"
    needs_reward_gradient = False

    beta: float = Field(ge=0)
    clip: float = 5.0

    losses = First.losses


@pytest.fixture(scope="module")
def two_methods() -> Iterator[None]:
    """These are all methods that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nablaflow.methods.METHODS", {"first": First, "second": Second})
        yield


def load(*overrides: str, **values: Any) -> Config:
    return load_config(None, overrides, {**MINIMAL, **values})


def refusal(*overrides: str, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*overrides, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)
