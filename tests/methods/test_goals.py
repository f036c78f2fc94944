"""Which methods, by which of their settings, aim at the exact tilt."""

from __future__ import annotations

import pytest

from nablaflow.methods import METHODS, Draft, Method, ResidualNablaDB, RewardWeightedRegression
from nablaflow.methods.ddpo import DDPO

OTHERS = {
    "nabla-db",  # exp(beta r) without the prior
    "ddpo",
    "draft",
    "alignprop",
    "refl",
    "reward-weighted-regression",
    "flow-grpo",
    "diffusion-nft",
    "vgg-flow",
}
BY_AN_ESTIMATOR = "value-matching"  # which a method of that name has to be told


@pytest.mark.parametrize("name", sorted(set(METHODS) - {BY_AN_ESTIMATOR}))
def test_by_its_defaults(name: str) -> None:
    method = METHODS[name](beta=2.0)
    assert method.aims_at_tilt is (name not in OTHERS)


@pytest.mark.parametrize(
    ("method", "aims"),
    [
        (DDPO.tilted(2.0), True),
        (DDPO(beta=2.0, advantage="centred", kl_weight=1.0), False),  # the KL to come left out
        (DDPO(beta=2.0, advantage="centred", kl_weight=1.0, kl_to_go=True), False),  # bounded
        (Draft(beta=2.0, k="all", kl_weight=1.0), True),
        (Draft(beta=2.0, k="all", kl_weight=0.5), False),
        (Draft(beta=2.0, k=2, kl_weight=1.0), False),
        (RewardWeightedRegression(beta=2.0, weights="tilt"), True),
        (ResidualNablaDB.published(2.0, 1.0), True),
        (ResidualNablaDB(beta=2.0, step="published", prior_strength=0.5), False),
    ],
)
def test_by_their_settings(method: Method, aims: bool) -> None:
    assert method.aims_at_tilt is aims
