"""Fitted rewards: the file, pessimism, the gradient to the pixels."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from nablaflow import features, nano
from nablaflow.errors import UserError
from nablaflow.rewards import load
from nablaflow.rewards.fitted import FittedReward
from nablaflow.rewards.heads import Heads, mean_and_spread, read_heads, save_heads
from tests.support.slopes import assert_slope


def random_heads(dim, members=4, hidden=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return Heads(
        mean=normal(dim),
        std=1.0 + normal(dim).abs(),
        direct=normal(members, dim) / dim**0.5,
        inner=normal(members, hidden, dim) / dim**0.5,
        bias=normal(members, hidden),
        slope=normal(members, hidden),
        offset=normal(members),
    )


@pytest.fixture
def images():
    uniform = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return 0.2 + 0.6 * uniform


@pytest.fixture
def reward_file(tmp_path):
    path = tmp_path / "my-reward.safetensors"
    save_heads(path, random_heads(192), {"features": "pixels", "pessimism": 0.5})
    return path


def test_heads_are_what_their_formula_says():
    heads = random_heads(5)
    row = torch.randn(5, generator=torch.Generator().manual_seed(2))
    standard = (row - heads.mean) / heads.std
    for member in range(4):
        hidden = torch.nn.functional.silu(heads.inner[member] @ standard + heads.bias[member])
        expected = heads.direct[member] @ standard + heads.slope[member] @ hidden
        found = heads(row[None])[member, 0]
        torch.testing.assert_close(found, expected + heads.offset[member])


def test_pessimism_subtracts_exactly_k_standard_deviations(images):
    heads = random_heads(192)
    scores = heads(features.load("pixels")(images))
    hopeful = FittedReward(heads, "pixels", 0.0)(images, [""] * 3)
    for k in (0.5, 1.0, 3.0):
        found = FittedReward(heads, "pixels", k)(images, [""] * 3)
        torch.testing.assert_close(found, hopeful - k * scores.std(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["pixels", "nano"])
def test_gradient_to_the_pixels_is_the_finite_difference(images, name):
    heads = random_heads(features.load(name).dim)
    reward = FittedReward(heads, name, 1.0)
    assert_slope(lambda x: reward(x, [""] * len(x)).sum(), images)


def test_members_that_agree_have_no_spread_and_a_finite_gradient():
    scores = torch.ones(4, 2, requires_grad=True)
    _, spread = mean_and_spread(scores)
    spread.sum().backward()
    assert (spread < 1e-5).all()
    assert scores.grad.isfinite().all()


def test_a_saved_file_scores_as_before(reward_file, images):
    expected = FittedReward(random_heads(192), "pixels", 0.5)(images, [""] * 3)
    found = load(str(reward_file))
    assert found.name == str(reward_file)
    torch.testing.assert_close(found(images, [""] * 3), expected)


def test_pessimism_can_be_set_where_the_reward_is_named(reward_file, images):
    found = load({"name": str(reward_file), "pessimism": 2.0})
    expected = FittedReward(random_heads(192), "pixels", 2.0)(images, [""] * 3)
    torch.testing.assert_close(found(images, [""] * 3), expected)


def test_it_adds_up_with_others(reward_file, images):
    alone = load(str(reward_file))(images, [""] * 3)
    total = load(f"0.5*{reward_file} + warmth")(images, [""] * 3)
    torch.testing.assert_close(total, 0.5 * alone + load("warmth")(images, [""] * 3))


@pytest.mark.parametrize("settings", [{"pessimist": 1.0}, {"pessimism": -1.0}, {"pessimism": "x"}])
def test_wrong_settings_are_named(reward_file, settings):
    with pytest.raises(UserError, match=f"reward.{next(iter(settings))}"):
        load({"name": str(reward_file), **settings})


def test_settings_of_a_reward_without_any_are_refused():
    with pytest.raises(UserError, match=r"reward\.pessimism: warmth has no settings"):
        load({"name": "warmth", "pessimism": 1.0})


def test_files_that_are_no_fitted_reward(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load(str(tmp_path / "none.safetensors"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not it")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load(str(broken))
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, other)
    with pytest.raises(UserError, match="was not written by"):
        load(str(other))


def test_unknown_features_and_heads_of_another_length(tmp_path, images):
    path = tmp_path / "r.safetensors"
    save_heads(path, random_heads(7), {"features": "gone", "pessimism": 0.0})
    with pytest.raises(UserError, match="needs the features 'gone'"):
        load(str(path))
    save_heads(path, random_heads(7), {"features": "pixels", "pessimism": 0.0})
    with pytest.raises(UserError, match="192 numbers an image, the heads were fitted to 7"):
        load(str(path))(images, [""] * 3)


@pytest.fixture
def nano_reward(tmp_path):
    """A reward on the embedded encoder, and a folder with that encoder trained a little more."""
    known = {"fingerprint": features.fingerprint(features.load("nano")), "weights": None}
    path = tmp_path / "nano.safetensors"
    save_heads(path, random_heads(192), {"features": "nano", "pessimism": 0.0, **known})
    vae = AutoencoderKL.from_pretrained(nano.path(), subfolder="vae", torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for weight in vae.parameters():
        weight.data *= 1 + 0.1 * torch.randn(weight.shape, generator=generator)
    vae.save_pretrained(tmp_path / "other" / "vae")
    return path, tmp_path / "other"


def test_features_of_other_weights_are_refused(nano_reward, images):
    path, other = nano_reward
    found = load({"name": str(path), "weights": str(other)})
    with pytest.raises(UserError) as error:
        found(images, [""] * 3)
    told = str(error.value)
    assert told.startswith(f"reward.weights: the features nano (weights {other}) give other")
    assert "in the fit (their own weights)" in told
    assert told.endswith("give the fit's weights (reward score: --weights), or fit it again")


def test_the_same_weights_in_another_folder_are_let_pass(nano_reward, images):
    path, _ = nano_reward
    found = load({"name": str(path), "weights": str(nano.path())})(images, [""] * 3)
    torch.testing.assert_close(found, load(str(path))(images, [""] * 3), rtol=0, atol=0)


def test_a_file_that_does_not_know_its_weights_says_so(reward_file, images, capsys):
    load(str(reward_file))(images, [""] * 3)
    assert "does not tell which weights the features pixels had" in capsys.readouterr().err


def test_what_is_known_of_a_reward_is_in_its_file(reward_file):
    heads, about = read_heads(reward_file)
    assert about == {"format": 1, "features": "pixels", "pessimism": 0.5}
    assert heads.tensors().keys() == random_heads(2).tensors().keys()
    assert not list(reward_file.parent.glob(".partial*"))
    json.dumps(about)
