"""Values as Python's libraries have them, in place of YAML's."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import nablaflow as nf
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.rewards import load
from nablaflow.settings import Settings


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where nothing holds the arguments against the annotations."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def configured(**groups: Any) -> Config:
    given: dict[str, Any] = {
        "model": "nano",
        "reward": "warmth",
        "prompts": ["a"],
        "output_dir": "x",
    }
    given["training"] = {"updates": 1}
    return parse_config({**given, "method": {"name": "draft", "beta": 1.0}, **groups})


@pytest.mark.parametrize(
    ("group", "given", "meant"),
    [
        ("training", {"gradient_checkpointing": np.True_}, {"gradient_checkpointing": True}),
        ("training", {"updates": torch.tensor(3)}, {"updates": 3}),
        ("sampler", {"crop": [np.int64(8), 0]}, {"crop": [8, 0]}),
        ("sampler", {"steps": np.uint8(4), "eta": Fraction(1, 2)}, {"steps": 4, "eta": 0.5}),
    ],
)
def test_values_of_libraries_are_yamls(group: str, given: Any, meant: Any):
    taken, expected = configured(**{group: given}), configured(**{group: meant})
    assert taken == expected
    kind = type(getattr(taken, group))
    assert kind(**given) == getattr(expected, group)


class Paired(Settings):
    """Of a user's own, with a pair and a path."""

    pair: tuple[int, float]
    file: Path


def test_a_tuple_and_a_path_stay_such():
    made = Paired(pair=(np.int64(1), np.float32(0.5)), file=Path("a"))
    assert (made.pair, made.file) == ((1, 0.5), Path("a"))


@pytest.mark.parametrize("weight", [np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_a_rewards_weight_is_a_number_of_any_library(weight: Any):
    assert configured(reward={"warmth": weight}).reward == {"warmth": 0.5}
    assert load({"warmth": weight}).name == "0.5*warmth"


@pytest.mark.parametrize(
    "value", [np.True_, np.complex64(1 + 1j), torch.tensor(1e99, dtype=torch.float64)]
)
def test_what_is_no_number_that_float32_holds_is_refused(value: Any):
    with pytest.raises(nf.UserError, match=r"^optimizer\.learning_rate: must be a "):
        configured(optimizer={"learning_rate": value})


def test_a_group_made_by_itself_is_checked_alike():
    with pytest.raises(nf.UserError, match=r"^optimizer\.learning_rate: .* float32 can hold"):
        configured(optimizer=nf.OptimizerSettings(learning_rate=1e99))


ALIGN: dict[str, Any] = {
    "reward": "warmth",
    "prompts": ["a"],
    "method": {"name": "draft", "beta": 1.0},
}


@pytest.mark.parametrize("group", ["sampler", "flow", "optimizer", "training", "guard"])
def test_an_array_is_no_group(group: str, tmp_path: Path):
    with pytest.raises(nf.UserError, match=f"^{group}: must hold settings of its own"):
        nf.align(**ALIGN, output_dir=tmp_path, updates=1, **{group: np.arange(3)})


def test_a_tensor_of_one_number_is_no_list_of_prompts(tmp_path: Path):
    with pytest.raises(nf.UserError, match=r"^prompts: must be a list of texts"):
        nf.align(**{**ALIGN, "prompts": torch.tensor(3)}, output_dir=tmp_path)
    with pytest.raises(nf.UserError, match=r"^prompts: must be a text or a list"):
        nf.sample("nano", torch.tensor(3))  # pyright: ignore[reportArgumentType]
