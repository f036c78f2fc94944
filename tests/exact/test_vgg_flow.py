"""VGG-Flow in the laboratory: what it ends at, by the control problem solved in plain numbers."""

import pytest

from nablaflow.exact import GaussianMixture, LabSettings, LinearReward, Problem, evaluate
from nablaflow.methods import VGGFlow

STEPS, SLOPE, N = 10, 0.8, 1000
PRIOR = GaussianMixture([[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])
SETTINGS = LabSettings(
    width=32,
    layers=1,
    learning_rate=5e-3,
    flow_learning_rate=5e-3,
    transition_fraction=0.5,
    policy_ema=0.9,
    warmup=0,
)


def shift_of_the_optimum() -> float:
    """Of unit normal images by a reward of unit slope: Euler steps of the ODE and its adjoint."""
    s = [0.0, *(1e-3 + (1 - 1e-3) * row / (STEPS - 1) for row in range(STEPS))]
    slope = [(2 * t - 1) / ((1 - t) ** 2 + t**2) for t in s]  # of the reference's velocity
    value = [1.0]
    for k in range(1, STEPS + 1):
        value.append(value[-1] * (1 - (s[k] - s[k - 1]) * slope[k]))
    x = 0.0
    for k in range(STEPS, 0, -1):
        x += (s[k - 1] - s[k]) * (slope[k] * x - value[k])
    return x


def test_training_ends_at_the_optimal_control_and_not_at_the_tilt() -> None:
    reward = LinearReward([SLOPE, 0.0])
    problem = Problem(PRIOR, reward, 1.0, steps=STEPS, path="flow", sampler="euler")

    def mean(updates: int) -> float:
        found = evaluate(problem, VGGFlow(beta=1.0), updates, 64, n=N, settings=SETTINGS)
        return float(found.samples[:, 0].mean())

    moved = mean(100) - mean(0)  # of the same noise
    assert moved == pytest.approx(SLOPE * shift_of_the_optimum(), rel=0.05)
    assert shift_of_the_optimum() > 1.3  # in the limit pi / 2; the tilt moves by 1
