"""Methods that need no reward gradient, in the laboratory: each comes near a tilt it can reach."""

import pytest

from nablaflow.exact import GaussianMixture, LabSettings, LinearReward, Problem, evaluate
from nablaflow.methods import DDPO, DagDB, DagKL, Method, RewardWeightedRegression

PRIOR = GaussianMixture([[1.0, -2.0]], [[[4.0, 0.0], [0.0, 4.0]]])
PROBLEM = Problem(PRIOR, LinearReward([0.5, -0.4]), beta=1.0, steps=6)
SETTINGS = LabSettings(
    width=16, layers=1, learning_rate=5e-3, flow_learning_rate=1e-2, policy_ema=0.9, warmup=0
)
METHODS: list[Method] = [
    DDPO.tilted(1.0),
    DDPO(beta=1.0, advantage="centred", max_advantage=None, kl_weight=1.0, form="score-function"),
    DagDB(beta=1.0),
    DagKL(beta=1.0),
    RewardWeightedRegression(beta=1.0, weights="tilt"),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_training_closes_most_of_the_way_to_the_tilt(method: Method) -> None:
    untrained = evaluate(PROBLEM, method, updates=0, n=1000)
    trained = evaluate(PROBLEM, method, updates=60, batch=128, n=1000, settings=SETTINGS)
    way = untrained.energy_distance - untrained.floor
    assert way > 0.5
    assert trained.energy_distance - trained.floor < 0.2 * way
