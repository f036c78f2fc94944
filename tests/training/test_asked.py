"""A loop of one's own that asks for what does not fit together is told so, before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from nablaflow.methods import Losses, Networks, TerminalMatching
from nablaflow.models import DiffusionModel
from nablaflow.rewards import load
from nablaflow.training import Average, Update
from nablaflow.training.asked import (
    check_credits,
    check_decay,
    check_losses,
    check_objects,
    check_rollout,
    check_size,
)
from tests.support.mistakes import line_of

ASKED: dict[str, Any] = {
    "prompts": ["a", "b"],
    "noise": torch.Generator(),
    "keep": torch.tensor([[1, 5], [2, 4]]),
    "steps": 5,
    "size": None,
}

METHOD = TerminalMatching(beta=4.0)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where nothing holds the arguments against the annotations."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"prompts": "ab"}, "prompts: must be a list of texts, one or more, not 'ab'"),
        ({"prompts": []}, "prompts: must be a list of texts, one or more, not []"),
        ({"prompts": ["a", 3]}, "prompts: must be a list of texts, one or more, not ['a', 3]"),
        ({"prompts": ["a"]}, "keep: of shape (2, 2) for 1 prompts; give method.draw(1, "),
        ({"keep": torch.tensor([1, 2])}, "keep: of shape (2,) for 2 prompts; give method.draw(2, "),
        ({"keep": None}, "keep: null for 2 prompts; give method.draw(2, "),
        ({"keep": torch.tensor([[0], [1]])}, "keep: names steps outside 1 to 5"),
        ({"keep": torch.tensor([[1], [6]])}, "keep: names steps outside 1 to 5"),
        ({"noise": None}, "noise: null for 2 prompts; give one generator, or one for each"),
        ({"noise": [torch.Generator()]}, "noise: 1 generators for 2 prompts; give one generator"),
        ({"size": 0}, "size: 0; give 1 or more, or None for all at once"),
    ],
)
def test_what_does_not_fit_is_one_line(given: dict[str, Any], line: str) -> None:
    check_rollout(**ASKED)
    assert line_of(lambda: check_rollout(**(ASKED | given))).startswith(line)


def test_credits_are_one_for_each_trajectory() -> None:
    check_credits(None, 2)
    check_credits(torch.ones(2), 2)
    assert line_of(lambda: check_credits(torch.ones(5), 2)).startswith("credits: of shape (5,) for")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_credit_that_is_not_finite_ends_the_update(value: float) -> None:
    with pytest.raises(FloatingPointError, match="the credit of a trajectory"):
        check_credits(torch.tensor([1.0, value]), 2)


GRAPH = torch.zeros(3, requires_grad=True) * 2


@pytest.mark.parametrize(
    ("losses", "line"),
    [
        (
            lambda: 3,
            "method own: losses gave 3; give nf.Losses({name: values}) with a value for each",
        ),
        (lambda: {"x": GRAPH}, "method own: losses gave {'x': tensor("),
        (
            lambda: Losses({}),
            "method own: losses gave Losses(terms={}, metrics={}); give nf.Losses({",
        ),
        (
            lambda: Losses({"x": GRAPH.mean()}),
            "method own: losses gave shape () for 'x', and there are 3",
        ),
        (
            lambda: Losses({"x": GRAPH[:2]}),
            "method own: losses gave shape (2,) for 'x', and there are 3",
        ),
        (
            lambda: Losses({"x": GRAPH}, {"y": 0.5}),
            "method own: losses gave 0.5 for 'y', and there are 3",
        ),
        (
            lambda: Losses({"x": GRAPH.detach()}),
            "method own: no term of its losses leads back to a netw",
        ),
    ],
    ids=range(7),
)
def test_losses_are_a_value_for_each_transition(losses: Callable[[], Any], line: str) -> None:
    assert line_of(lambda: check_losses("own", losses(), 3)).startswith(line)


def test_a_loss_and_a_figure_for_each_will_do() -> None:
    check_losses("own", Losses({"x": GRAPH, "y": GRAPH.detach()}, {"z": torch.zeros(3)}), 3)
    with torch.no_grad():
        check_losses("own", Losses({"x": torch.zeros(3)}), 3)


def test_a_size_is_one_or_more() -> None:
    check_size(None)
    for size in (0, -1):
        assert line_of(lambda size=size: check_size(size)).startswith(f"size: {size}; give 1 or")


class Model(DiffusionModel):
    """None of it is used."""


Model.__abstractmethods__ = frozenset()
NETWORKS = Networks(Model.__new__(Model), load("warmth"))


@pytest.mark.parametrize(
    ("method", "given", "line"),
    [
        (TerminalMatching, {}, "method: must be a method with its settings, such as Term"),
        ("terminal", {}, "method: must be a method with its settings, such as Terminal"),
        (METHOD, {"model": "nano"}, "Networks: model: must be what nablaflow.models.load_model"),
        (METHOD, {"reward": "warmth"}, "Networks: reward: must be what nablaflow.rewards.load"),
        (METHOD, {"reward": sum}, "Networks: reward: must be what nablaflow.rewards.load"),
    ],
)
def test_an_update_is_of_a_method_and_networks(
    method: Any, given: dict[str, Any], line: str
) -> None:
    check_objects(METHOD, NETWORKS)
    networks = replace(NETWORKS, **given)
    assert line_of(lambda: Update(method, networks)).startswith(line)
    bare: Any = NETWORKS.model
    assert line_of(lambda: Update(METHOD, bare)).startswith("networks: must be Networks(model, ")


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan"), "a", None, True])
def test_an_average_that_would_not_follow_is_refused(decay: Any) -> None:
    check_decay(0)
    check_decay(np.float32(0.5))
    assert line_of(lambda: Average(nn.Linear(1, 1), decay)).startswith("decay: ")
