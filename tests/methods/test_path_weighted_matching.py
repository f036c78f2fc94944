"""Weights by hand, and in the loss; a policy that learns a tilt which its weights alone know of."""

import math
from dataclasses import replace

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.estimators import ValueGradients
from nablaflow.exact import GaussianMixture, LabSettings, LinearReward, Problem
from nablaflow.exact.training import sample_policy, train
from nablaflow.methods import AdjointMatching, PathWeightedMatching
from tests.support.paths import bent_problem, random_states

PROMPTS = ["one", "two", "one", "two", "one"]
SCORES = torch.tensor([0.2, 0.9, -0.4, 0.1, 0.5])
LOG_RATIO = torch.tensor([0.3, 0.0, -0.2, 0.4, 0.1], dtype=torch.float64)


def test_weights_are_those_of_trajectory_balance_within_each_prompt() -> None:
    method = PathWeightedMatching(beta=1.5, effective_share=0.1)
    found = method.credits(SCORES, PROMPTS, LOG_RATIO)
    for prompt in ("one", "two"):
        rows = [row for row, own in enumerate(PROMPTS) if own == prompt]
        plain = [math.exp(1.5 * SCORES[row].item() - LOG_RATIO[row].item()) for row in rows]
        expected = [weight * len(rows) / sum(plain) for weight in plain]
        assert found[rows].tolist() == pytest.approx(expected, rel=1e-5)


def test_where_trajectory_balance_holds_the_weights_are_equal() -> None:
    log_ratio = 1.5 * SCORES.double() - torch.tensor([0.7, -1.0, 0.7, -1.0, 0.7])
    found = PathWeightedMatching(beta=1.5).credits(SCORES, PROMPTS, log_ratio)
    torch.testing.assert_close(found, torch.ones(5), rtol=0.0, atol=1e-5)


def test_credit_multiplies_the_loss_of_its_rows() -> None:
    bent = bent_problem()
    path = bent.random_path([[5, 1], [2, 4]])
    batch = path.batch()
    target = random_states(0, len(batch), 2, seed=5)[0]
    batch = replace(batch, estimate=ValueGradients(target))
    credit = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    plain = AdjointMatching(beta=1.0).losses(batch, bent.networks).terms["forward"]
    method = PathWeightedMatching(beta=1.0)
    found = method.losses(replace(batch, credit=credit), bent.networks).terms["forward"]
    torch.testing.assert_close(found, credit * plain)
    assert (plain > 0).all()


def test_what_was_never_predicted_is_not_asked_about() -> None:
    method = PathWeightedMatching(beta=1.0, output_regularization=0.1)
    with pytest.raises(UserError, match=r"^method\.output_regularization: "):
        method.check(bent_problem().model.process, flow=False, on_policy=False)


def test_one_image_a_prompt_and_a_wrong_sampler_are_refused() -> None:
    assert PathWeightedMatching(beta=1.0).needs_group
    bent = bent_problem(eta=0.4)
    with pytest.raises(UserError, match=r"^sampler: "):
        PathWeightedMatching(beta=1.0).check(bent.model.process, flow=False, on_policy=True)


PRIOR = GaussianMixture([[-2.0], [2.0]], [[[0.1]], [[0.1]]])
WITHIN = Problem(PRIOR, LinearReward([0.5]), beta=1.0, steps=20)
TRAINING = LabSettings(width=32, layers=1, learning_rate=1e-2, policy_ema=0.9, steps_per_rollout=4)


def test_modes_far_apart_get_the_weights_of_the_tilt() -> None:
    """Between them gradients say nothing: the adjoint alone leaves them half and half."""
    method = PathWeightedMatching(beta=1.0)
    found = train(WITHIN, method, 60, 64, 0, TRAINING, lambda update: None)
    right = (sample_policy(found.model, 4000, seed=3) > 0).double().mean().item()
    assert right == pytest.approx(math.exp(2) / (1 + math.exp(2)), abs=0.04)
