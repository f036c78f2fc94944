"""`nf.exact` with arguments of another type, as a notebook gives them: one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from nablaflow.exact import (
    BumpReward,
    GaussianMixture,
    LinearReward,
    Problem,
    evaluate,
    named_problem,
)
from nablaflow.exact.training import before_training
from nablaflow.methods import AdjointMatching
from tests.support.mistakes import line_of

NORMAL = GaussianMixture([[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])
LINEAR = LinearReward([1.0, 0.0])
BUMP = BumpReward([[0.0, 0.0]], [1.0], 1.0)
PROBLEM = Problem(NORMAL, LINEAR, beta=1.0, steps=3)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where nothing holds the arguments against the annotations."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"beta": "1"}, "beta: must be a valid number, not '1'"),
        ({"beta": None}, "beta: must be a valid number, not null"),
        ({"steps": 2.5}, "steps: must be a valid integer, not 2.5"),
        ({"steps": "5"}, "steps: must be a valid integer, not '5'"),
        ({"name": 3}, "name: must be a valid string, not 3"),
        ({"prior": None}, "prior: null is none; give a nf.exact.GaussianMixture"),
        ({"reward": "warmth"}, "reward: of 'warmth' no tilt is known; give a LinearReward, "),
        ({"beta": 1e300}, "beta: 1e+300 is too much, the tilt's means or weights are no finite "),
    ],
    ids=str,
)
def test_a_problem(given: dict[str, Any], line: str) -> None:
    parts: dict[str, Any] = {"prior": NORMAL, "reward": LINEAR, "beta": 1.0} | given
    assert line_of(lambda: Problem(**parts)).startswith(line)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"problem": "ring"}, "problem: 'ring' is none; give a nf.exact.Problem"),
        ({"updates": 1.5}, "updates: must be a valid integer, not 1.5"),
        ({"batch": 2.5}, "batch: must be a valid integer, not 2.5"),
        ({"n": None}, "n: must be a valid integer, not null"),
        ({"seed": None}, "seed: must be a valid integer, not null"),
        ({"seed": 2**32}, "seed: must be less than 4294967296, not 4294967296"),
        ({"method": 3}, "method: must be a name or a method with its beta, not 3"),
        ({"method": AdjointMatching}, "method: must be a name or a method with its beta, not "),
        ({"settings": {"width": 3}}, "settings: must be nf.exact.LabSettings(…), not {'width': 3}"),
    ],
    ids=str,
)
def test_an_evaluation(given: dict[str, Any], line: str) -> None:
    assert line_of(lambda: evaluate(**({"problem": PROBLEM} | given))).startswith(line)


POINTS = "give a tensor of real numbers, (batch, dim)"


@pytest.mark.parametrize("of", [NORMAL.log_prob, NORMAL.score, LINEAR, BUMP])
@pytest.mark.parametrize(
    ("x", "line"),
    [
        ([[0.0, 0.0]], f"x: [[0.0, 0.0]]; {POINTS}"),
        (torch.zeros(2), f"x: torch.float32 of shape (2,); {POINTS}"),
        (torch.zeros(1, 2, dtype=torch.long), f"x: torch.int64 of shape (1, 2); {POINTS}"),
        (torch.zeros(1, 1), "x: of dimension 1; the "),
    ],
    ids=str,
)
def test_points(of: Callable[[Any], Any], x: Any, line: str) -> None:
    assert line_of(lambda: of(x)).startswith(line)


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", None])
@pytest.mark.parametrize("target", [NORMAL, BUMP.tilt(NORMAL, 1.0)], ids=["mixture", "rejection"])
def test_how_many_points(target: Any, n: Any) -> None:
    assert line_of(lambda: target.sample(n)).endswith("; give a whole number of at least 1")


def test_numbers_of_numpy_are_numbers() -> None:
    found = Problem(NORMAL, LINEAR, beta=np.float64(1.0), steps=np.int64(3))  # pyright: ignore[reportArgumentType]
    assert found.target.sample(np.int64(2)).shape == (2, 2)
    assert BumpReward([[0.0, 0.0]], [1.0], np.float32(2.0)).dim == 2  # pyright: ignore[reportArgumentType]
    numbers: dict[str, Any] = dict(
        zip(("updates", "batch", "n", "seed"), np.array([1, 4, 100, 0]), strict=True)
    )
    assert evaluate(PROBLEM, **numbers).row()


def test_the_rest() -> None:
    assert line_of(lambda: named_problem(3)) == "name: must be a problem's name, not 3"  # pyright: ignore[reportArgumentType]
    assert line_of(lambda: BumpReward([[0.0]], [1.0], "a")).startswith("width: 'a'; give")  # pyright: ignore[reportArgumentType]
    imaginary = torch.zeros(1, 1, dtype=torch.complex64)
    assert line_of(lambda: GaussianMixture(imaginary, [[[1.0]]])).startswith("means: holds complex")


def test_what_is_measured_before_a_training_has_noise_of_its_own() -> None:
    """The CPU's generator reads 32 bits of a seed; those of the trainings are small numbers."""
    read = [{seed % 2**32 for seed in before_training(own, 256)} for own in (0, 1)]
    assert not read[0] & read[1]
    assert not (read[0] | read[1]) & set(range(1000))
