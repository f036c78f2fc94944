"""Finding a reward by name, path, sum or as it is."""

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import REWARDS, NamedReward, load
from nablaflow.rewards.pixels import brightness

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b"]


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_listed_reward_is_found_and_scores(name):
    reward = load(name)
    assert reward.name == name
    torch.testing.assert_close(reward(IMAGES, PROMPTS), REWARDS[name](IMAGES, PROMPTS))


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown reward 'warmt': did you mean warmth\?"):
        load("warmt")


def test_a_callable_is_taken_as_it_is():
    reward = load(brightness)
    assert reward == NamedReward("brightness", brightness)
    assert load(reward) is reward


def test_a_sum_and_its_mapping_mean_the_same():
    text = load("warmth + 0.5*symmetry - brightness")
    mapping = load({"warmth": 1, "symmetry": 0.5, "brightness": -1.0})
    assert text == mapping
    assert text.name == "warmth + 0.5*symmetry - brightness"


@pytest.mark.parametrize(
    "spec",
    [
        {"warmth": 1},
        {"warmth": {"weight": 1.0}},
        {"warmth": 1.0, "symmetry": 0},
        "warmth + 0*symmetry",
        {"name": "minimum", "of": [{"warmth": 1}, "warmth"]},
        {"mine": {"name": "warmth"}},
    ],
)
def test_a_sum_of_one_term_of_weight_one_is_that_term(spec):
    assert torch.equal(load(spec)(IMAGES, PROMPTS), load("warmth")(IMAGES, PROMPTS))


def test_a_path_is_a_reward_and_a_term(tmp_path):
    path = tmp_path / "my-rewards.py"
    path.write_text("def first(images, prompts):\n    return images[:, 0, 0, 0]\n")
    spec = f"{path}:first"
    assert torch.equal(load(spec)(IMAGES, PROMPTS), IMAGES[:, 0, 0, 0])
    both = load(f"2*{spec} - brightness")
    expected = 2 * IMAGES[:, 0, 0, 0] - brightness(IMAGES, PROMPTS)
    torch.testing.assert_close(both(IMAGES, PROMPTS), expected)
