"""References that train nothing, and methods that differentiate sampling, in the laboratory."""

import pytest

from nablaflow.errors import UserError
from nablaflow.exact import GaussianMixture, LabSettings, LinearReward, Problem, Result, evaluate
from nablaflow.methods import AlignProp, BestOfN, Draft, GuidedSampling, Method, ReFL, Untrained

N, STEPS, SHIFT = 1000, 6, 1.5
LINE = Problem(
    GaussianMixture([[0.0]], [[[1.0]]]), LinearReward([SHIFT]), beta=1.0, steps=STEPS, name="line"
)


def found(method: Untrained | str, updates: int = 3) -> Result:
    return evaluate(LINE, method, updates, n=N)


@pytest.mark.parametrize(
    ("method", "passes_each"),
    [
        (BestOfN(n=1), STEPS),
        (BestOfN(n=3), 3 * STEPS),
        (GuidedSampling(beta=1.0), 2 * STEPS),
    ],
    ids=repr,
)
def test_the_cost_is_that_of_the_samples(method: Untrained, passes_each: int) -> None:
    told: list[int] = []
    result = evaluate(LINE, method, 3, n=N, on_update=told.append)
    assert result.method == method.name
    assert result.updates == 0
    assert result.network_evaluations == N * passes_each
    assert result.seconds > 0
    assert told == [1, 2, 3], "a bar of updates must come to its end"


def test_by_name_each_comes_nearer_to_the_tilt_than_the_reference() -> None:
    reference = found(BestOfN(n=1))
    assert reference.reward_mean == pytest.approx(0.0, abs=4 * SHIFT / N**0.5)
    for name in ("best-of-n", "guided-sampling", "guided-sampling-exact"):
        result = found(name)
        assert result.method == name
        assert result.energy_distance < 0.5 * reference.energy_distance
        assert result.reward_mean > 1.0
    assert found("best-of-n").row() == found("best-of-n", updates=9).row() | {
        "seconds": pytest.approx(0.0, abs=60.0)
    }


def test_another_beta_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method: its beta is 2, the problem's 1; [^\n]*$"):
        evaluate(LINE, GuidedSampling(beta=2.0), n=N)


@pytest.mark.parametrize(
    "method",
    [
        ReFL(beta=1.0, last=0.5),
        Draft(beta=1.0, k="all", kl_weight=1.0),
        Draft(beta=1.0, low_variance_samples=2, kl_weight=1.0),
        AlignProp(beta=1.0, kl_weight=1.0),
    ],
    ids=repr,
)
def test_training_raises_the_reward(method: Method) -> None:
    settings = LabSettings(width=32, layers=1, learning_rate=1e-2, policy_ema=0.9)
    result = evaluate(LINE, method, 30, batch=32, n=N, settings=settings)
    assert result.updates == 30
    assert result.reward_mean > 0.5
