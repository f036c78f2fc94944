"""Weighted sums: the grammar, the arithmetic, and what is refused."""

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import REWARDS, NamedReward, load, score_and_gradient
from nablaflow.rewards.combine import parse, weighted_sum

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c"]


def find(spec):
    return NamedReward(spec, REWARDS[spec])


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("warmth", {"warmth": 1.0}),
        ("  -warmth ", {"warmth": -1.0}),
        ("- 2 * warmth", {"warmth": -2.0}),
        ("a + 0.5*b - c", {"a": 1.0, "b": 0.5, "c": -1.0}),
        ("1e-3*a  -  .5*b", {"a": 1e-3, "b": -0.5}),
        ("a + a - 3.*a", {"a": -1.0}),
        ("2*my-dir/a+b.py:f - c", {"my-dir/a+b.py:f": 2.0, "c": -1.0}),
        ("my dir/a.py:f + b", {"my dir/a.py:f": 1.0, "b": 1.0}),
    ],
)
def test_grammar(text, weights):
    assert parse(text) == weights


@pytest.mark.parametrize("text", ["a+b", "a + + b", "a - ", "2*", "x*a", "a - -2*b", "+"])
def test_a_term_that_cannot_be_read_is_named(text):
    with pytest.raises(UserError, match="with a space on both sides of"):
        parse(text)


def test_an_empty_text_is_refused():
    with pytest.raises(UserError, match="the reward is empty"):
        parse("  ")


def test_the_sum_is_linear_in_reward_and_gradient():
    total, slope = score_and_gradient(load("2*warmth - 0.25*contrast"), IMAGES, PROMPTS)
    warm, warm_slope = score_and_gradient(load("warmth"), IMAGES, PROMPTS)
    rms, rms_slope = score_and_gradient(load("contrast"), IMAGES, PROMPTS)
    torch.testing.assert_close(total, 2 * warm - 0.25 * rms)
    torch.testing.assert_close(slope, 2 * warm_slope - 0.25 * rms_slope)


def test_the_name_reads_like_the_sum():
    weights = {"warmth": -1, "contrast": -0.5, "brightness": 1e-5, "symmetry": 3.0}
    name = weighted_sum(weights, find).name
    assert name == "-warmth - 0.5*contrast + 1e-05*brightness + 3*symmetry"
    assert parse(name) == weights


def test_a_term_of_weight_zero_is_left_out_but_must_exist():
    assert weighted_sum({"warmth": 1.0, "contrast": 0.0}, find).name == "warmth"
    with pytest.raises(UserError, match="unknown reward 'nothing'"):
        load({"warmth": 1.0, "nothing": 0.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"warmth": "1e-3"}, "weight of reward 'warmth' is '1e-3': give a number"),
        ({"warmth": True}, "weight of reward 'warmth' is True: give a number"),
        ({"warmth": None}, "weight of reward 'warmth' is None: give a number"),
        ({"warmth": float("inf")}, "weight of reward 'warmth' is inf: give a finite number"),
        ({"warmth": float("nan")}, "weight of reward 'warmth' is nan: give a finite number"),
        ({"warmth": 0, "contrast": 0.0}, "no term whose weight is not 0"),
        ({}, "no term whose weight is not 0"),
    ],
)
def test_a_weight_that_means_nothing_is_refused(weights, message):
    with pytest.raises(UserError, match=message):
        weighted_sum(weights, find)


def test_a_sum_that_cancels_is_refused():
    with pytest.raises(UserError, match="no term whose weight is not 0"):
        load("warmth - warmth")


def test_the_failing_term_is_the_one_named():
    def broken(images, prompts):
        return images.mean()

    terms = {"good": NamedReward("good", REWARDS["warmth"]), "bad": NamedReward("bad", broken)}
    total = weighted_sum({"good": 1.0, "bad": 1.0}, terms.__getitem__)
    with pytest.raises(UserError, match="reward 'bad' returned shape"):
        total(IMAGES, PROMPTS)
