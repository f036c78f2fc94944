"""The strength of a tilt, and the beta of a strength, against normal rewards."""

import math

import pytest
import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.strength import Strength, beta_of_effective_share, beta_of_nats

N = 20_000
SPREADS = (0.5, 0.25)  # of two prompts; the first is moved most


def quantiles(spread: float, n: int = N) -> Tensor:
    """As a normal distribution's, with mean 2."""
    return torch.distributions.Normal(2.0, spread).icdf((torch.arange(n) + 0.5) / n)


REWARDS = torch.stack([quantiles(spread) for spread in SPREADS], 1).flatten()
INDEX = torch.arange(2 * N) % 2


@pytest.mark.parametrize("share", [0.9, 0.5, 1 / 3])
def test_the_share_that_counts_is_a_gaussians(share: float) -> None:
    # Kish's share of exp(beta r), r normal, is exp(-beta^2 s^2).
    exact = math.sqrt(-math.log(share)) / SPREADS[0]
    assert beta_of_effective_share(REWARDS, INDEX, share) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("nats", [0.1, 0.5, 1.0])
def test_the_divergence_is_a_gaussians(nats: float) -> None:
    exact = math.sqrt(2 * nats) / SPREADS[0]
    assert beta_of_nats(REWARDS, INDEX, nats) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("unit", [1e-4, 1e5])
def test_a_strength_does_not_depend_on_the_rewards_unit(unit: float) -> None:
    beta = beta_of_effective_share(REWARDS, INDEX, 0.5)
    assert beta_of_effective_share(unit * REWARDS, INDEX, 0.5) == pytest.approx(
        beta / unit, rel=0.05
    )


def test_what_a_tilt_does_to_normal_rewards() -> None:
    found = Strength.of_rewards(REWARDS, INDEX, 2.0)
    assert found.effective_share == pytest.approx(math.exp(-1.0), rel=0.02)
    assert found.nats == pytest.approx(0.5, rel=0.02)
    assert found.reward_mean == pytest.approx(2.0, abs=1e-3)
    mean = 2.0 + 2.0 * (SPREADS[0] ** 2 + SPREADS[1] ** 2) / 2  # beta s^2 in each prompt
    assert found.tilted_reward_mean == pytest.approx(mean, abs=0.01)
    assert found.n == 2 * N


FEW = torch.zeros(64, dtype=torch.long)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        (torch.full((64,), 0.3), "the same for all reference samples"),
        (torch.full((64,), math.nan), "is not finite"),
        ((torch.arange(64) % 2).float(), "too few different values"),
    ],
)
def test_rewards_that_no_tilt_can_be_told_from_are_refused(rewards: Tensor, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        beta_of_effective_share(rewards, FEW, 0.3)
    assert "\n" not in str(error.value)


def test_more_nats_than_the_samples_can_tell_are_refused() -> None:
    with pytest.raises(UserError, match=r"nats: 3 is more than 64 .* use 2\.77 or less"):
        beta_of_nats(quantiles(1.0, 64), FEW, 3.0)
