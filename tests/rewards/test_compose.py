"""Rewards made of others: minimum, cap, normalisation, sums with settings."""

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import load, memory, observe, probe, recall
from nablaflow.rewards.pixels import brightness, warmth

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a"] * 6


def test_a_minimum_is_the_least_of_its_parts_and_follows_that_one():
    reward = load({"name": "minimum", "of": ["warmth", "brightness - 0.5*warmth"]})
    assert reward.name == "minimum(warmth, brightness - 0.5*warmth)"
    first, second = warmth(IMAGES, PROMPTS), brightness(IMAGES, PROMPTS)
    torch.testing.assert_close(reward(IMAGES, PROMPTS), torch.minimum(first, second - first / 2))


def test_a_cap_has_no_slope_beyond_it_and_a_soft_one_has_less():
    scores = brightness(IMAGES, PROMPTS)
    at = scores.median().item()
    hard = load({"name": "cap", "of": "brightness", "at": at})
    torch.testing.assert_close(hard(IMAGES, PROMPTS), scores.clamp(max=at))
    soft = load({"name": "cap", "of": "brightness", "at": at, "softness": 0.01})
    images = IMAGES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(soft(images, PROMPTS).sum(), images)
    wanted = torch.sigmoid((at - scores) / 0.01) * 0.7152 / 64
    torch.testing.assert_close(slope[:, 1, 0, 0], wanted)
    assert (soft(IMAGES, PROMPTS) < scores.clamp(max=at)).all()
    # Its part has a gradient everywhere, so a cap that the test images exceed is no reason.
    low = load({"name": "cap", "of": "brightness", "at": -1.0})
    assert probe(low, height=8, width=8, device="cpu", prompts=["a"]).differentiable


def test_components_are_scored_once_and_known_by_name():
    reward = load({"warmth": 2.0, "light": {"name": "brightness", "weight": -0.5}})
    assert reward.name == "2*warmth - 0.5*light"
    score, parts = reward.detailed(IMAGES, PROMPTS)
    torch.testing.assert_close(parts["warmth"], warmth(IMAGES, PROMPTS))
    torch.testing.assert_close(parts["light"], brightness(IMAGES, PROMPTS))
    torch.testing.assert_close(score, 2 * parts["warmth"] - 0.5 * parts["light"])
    assert load("warmth").detailed(IMAGES, PROMPTS)[1] == {}


def test_normalisation_follows_a_window_that_only_training_moves():
    reward = load({"name": "normalized", "of": "brightness", "window": 8})
    scores = brightness(IMAGES, PROMPTS)
    torch.testing.assert_close(reward(IMAGES, PROMPTS), scores)
    past = []
    for shift in (0.0, 0.1):
        _, parts = reward.detailed(IMAGES * 0.5 + shift, PROMPTS)
        observe(reward, parts)
        past += parts["brightness"].double().tolist()
    window = torch.tensor(past[-8:], dtype=torch.float64)
    wanted = (scores - window.mean().item()) / window.std().item()
    torch.testing.assert_close(reward(IMAGES, PROMPTS), wanted)


def test_a_spread_of_nothing_does_not_blow_up():
    reward = load({"name": "normalized", "of": "brightness", "least_spread": 0.1})
    same = IMAGES[:1].expand(6, -1, -1, -1)
    observe(reward, reward.detailed(same, PROMPTS)[1])
    torch.testing.assert_close(reward(same, PROMPTS), torch.zeros(6), atol=1e-5, rtol=0)


def test_memory_is_recalled_bit_for_bit_at_any_depth():
    spec = {"name": "minimum", "of": [{"name": "normalized", "of": "warmth"}, "brightness"]}
    first, second = load(spec), load(spec)
    observe(first, first.detailed(IMAGES, PROMPTS)[1])
    recall(second, memory(first))
    assert torch.equal(first(IMAGES, PROMPTS), second(IMAGES, PROMPTS))
    assert not torch.equal(load(spec)(IMAGES, PROMPTS), first(IMAGES, PROMPTS))


@pytest.mark.parametrize("saved", [{}, {"normalized(brightness)": torch.tensor([0.3]).double()}])
def test_what_was_not_saved_is_forgotten(saved):
    reward = load({"name": "normalized", "of": "brightness"})
    observe(reward, reward.detailed(IMAGES, PROMPTS)[1])
    recall(reward, saved)
    # As it is, until there are two scores.
    torch.testing.assert_close(reward(IMAGES, PROMPTS), brightness(IMAGES, PROMPTS))
    (remembered,) = memory(reward).values()
    assert remembered.tolist() == [score for value in saved.values() for score in value.tolist()]


def test_a_gradient_is_the_parts_over_the_spread():
    reward = load({"name": "normalized", "of": "brightness"})
    observe(reward, reward.detailed(IMAGES, PROMPTS)[1])
    images = IMAGES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
    spread = brightness(IMAGES, PROMPTS).double().std().float()
    for channel, weight in enumerate((0.2126, 0.7152, 0.0722)):  # Rec. 709
        wanted = torch.full_like(slope[:, channel], weight / 64) / spread
        torch.testing.assert_close(slope[:, channel], wanted)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "minimum", "of": ["warmth"]}, r"reward\.of: List should have at least 2"),
        ({"name": "cap", "of": "warmth"}, r"reward\.at: missing for cap"),
        ({"name": "cap", "of": "warmt", "at": 1.0}, r"unknown reward 'warmt'; did|'warmt': did"),
        ({"name": "warmth", "batch": 2}, r"reward\.batch: warmth has no settings; leave it out"),
        ({"beauty": {"name": 3}}, r"^reward\.beauty\.name: 3 is no name; give one, or path"),
        ({"beauty": {"name": None, "weight": 2}}, r"^reward\.beauty\.name: None is no name"),
        ({"name": "minimum", "of": [{3: 1.0}, "warmth"]}, r"^reward: 3 is no name; give one"),
        ({"name": "minimum", "of": [{"a": {"name": 3}}, "warmth"]}, r"reward\.a\.name: 3 is no"),
        ({"name": "esthetic"}, r"unknown reward 'esthetic': did you mean aesthetic\?"),
        (
            {"aesthetic": {"weight": 1.0}, "minimum": {"of": ["aesthetic", "warmth"]}},
            r"two different rewards are called 'aesthetic'",
        ),
    ],
)
def test_mistakes_are_one_line(spec, said):
    with pytest.raises(UserError, match=said):
        load(spec)
