"""Rewards with the signature of TRL's diffusion trainers."""

import numpy as np
import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import TrlReward, load, probe, tell_metadata
from nablaflow.rewards.references import references

SOURCE = """
import numpy as np
import torch


def redness(images, prompts, metadata):  # AlignProp's: keeps the graph
    return images[:, 0].mean((1, 2)), {"seen": len(prompts)}


def on_disk(images, prompts, metadata):  # DDPO's: 8-bit images, numpy
    pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels[:, 0].mean((1, 2)).astype(np.float64) / 255, {}


def weighted(images, prompts, metadata):
    assert isinstance(prompts, tuple) and isinstance(metadata, tuple)
    factor = torch.tensor([float(row.get("weight", 1)) for row in metadata])
    return factor * images.mean((1, 2, 3)), {}


def plain(images, prompts):
    return images.mean((1, 2, 3)).tolist()


def words(images, prompts, metadata):
    return ["good"] * len(images), {}


def three(images, prompts, metadata):
    return images.mean((1, 2, 3)), {}, {}


def lonely(images):
    return images.mean((1, 2, 3))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def images(n=2):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_scores_are_the_first_of_the_two_things_it_returns(file):
    reward = load(f"trl:{file}:redness")
    assert reward.name == f"trl:{file}:redness"
    assert torch.equal(reward(images(), ["a", "b"]), images()[:, 0].mean((1, 2)))


def test_numpy_and_lists_become_float32_tensors(file):
    scores = load(f"trl:{file}:on_disk")(images(), ["a", "b"])
    expected = np.round(images().numpy() * 255)[:, 0].mean((1, 2)) / 255
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)
    assert torch.allclose(load(f"trl:{file}:plain")(images(), ["a", "b"]), images().mean((1, 2, 3)))


def test_it_has_a_gradient_if_it_keeps_the_graph(file):
    def found(name):
        return probe(load(f"trl:{file}:{name}"), height=8, width=8, device="cpu", prompts=["a"])

    assert found("redness").differentiable
    assert not found("on_disk").differentiable
    assert "graph" in found("plain").reason or "gradient" in found("plain").reason


def test_metadata_reaches_the_function_by_the_prompt_in_a_sum_too(file):
    reward = load(f"warmth + 2*trl:{file}:weighted")
    tell_metadata(reward, lambda: {"a": {"weight": 3.0}})
    _, parts = reward.detailed(images(3), ["a", "b", "a"])
    mean = images(3).mean((1, 2, 3))
    assert torch.allclose(parts[f"trl:{file}:weighted"], mean * torch.tensor([3.0, 1.0, 3.0]))


def test_metadata_is_not_looked_up_where_nobody_reads_it():
    asked: list[bool] = []

    def metadata() -> dict[str, dict[str, float]]:
        asked.append(True)
        return {}

    tell_metadata(load("warmth"), metadata)
    assert asked == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("words", "returned list for its scores: return a tensor, an array or a list"),
        ("three", r"returned 3 things: return \(scores, info\)"),
        ("lonely", r"takes \(images\): TRL's rewards take \(images, prompts, metadata\)"),
        ("absent", "has no absent"),
    ],
)
def test_a_mistake_is_one_line(file, name, words):
    with pytest.raises(UserError, match=words) as caught:
        load(f"trl:{file}:{name}")(images(), ["a", "b"])
    assert "\n" not in str(caught.value)


def test_a_function_in_memory_can_be_wrapped():
    def mine(images, prompts, metadata):
        return images.amax((1, 2, 3)), {}

    reward = load(TrlReward(mine))
    assert reward.name == "mine"
    assert torch.equal(reward(images(), ["a", "b"]), images().amax((1, 2, 3)))


def test_it_is_code_of_the_file_for_whoever_must_give_word(file):
    (found,) = references(f"trl:{file}:redness")
    assert (found.kind, found.path) == ("code", file.resolve())
    before = found.identity
    file.write_text(SOURCE + "\n# changed\n")
    assert found.identity != before
    assert {str(part) for part in references({f"trl:{file}:redness": 1.0, "warmth": 1.0})} == {
        f"code {file}:redness"
    }


def three(images, prompts, metadata):
    return images.mean((1, 2, 3)), {}


def test_one_that_is_given_as_it_is_says_how_it_goes_in():
    for reward in (load(three), load({"warmth": 1.0, f"{__file__}:three": 0.5})):
        with pytest.raises(UserError, match=r"takes three arguments, as TRL's rewards do: give"):
            probe(reward, height=8, width=8, device="cpu", prompts=["a"])
    assert probe(TrlReward(three), height=8, width=8, device="cpu", prompts=["a"]).differentiable
