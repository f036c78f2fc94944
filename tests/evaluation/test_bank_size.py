"""How much of a bank is looked at, on Gaussian rewards, of which it is known how many count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nablaflow.evaluation.bank_size import BankSize, bank_for_tilt, look_at_bank
from nablaflow.evaluation.sampled import Sampled
from nablaflow.metrics.summary import SampleSet
from nablaflow.typing import Latents

PROMPTS = 4
REWARDS = torch.randn(8192, generator=torch.Generator().manual_seed(0))


def look(size: BankSize, beta: float) -> tuple[Sampled, list[int]]:
    """What was looked at of a bank whose states are their own rewards, and in how many pieces."""
    pieces: list[int] = []

    def sample(n: int, known: Tensor | None) -> Latents:
        if known is not None:
            assert torch.equal(known.flatten(), REWARDS[: len(known)])
        return REWARDS[:n].reshape(-1, 1, 1, 1)

    def score(states: Latents) -> Sampled:
        pieces.append(len(states))
        rows = states.flatten(1)
        samples = SampleSet(rows, rows[:, 0], torch.arange(len(rows)) % PROMPTS)
        return Sampled(samples, states.expand(-1, 3, 1, 1), [], {"other": 2.0 * rows[:, 0]})

    return look_at_bank(sample, score, size, PROMPTS, lambda samples: beta), pieces


@pytest.mark.parametrize(
    ("own", "n", "first"), [(512, 512, 8192), (512, 600, 8192), (512, 256, 4096), (512, 5, 80)]
)
def test_the_bank_keeps_its_proportion_to_the_images(own: int, n: int, first: int):
    assert BankSize.for_images(8192, own, n) == BankSize(8192, first)


@pytest.mark.parametrize(
    ("beta", "first", "most"),
    [
        (0.0, 1024, 1024),  # all count: 256 of a prompt are enough
        (0.0, 512, 1000),  # 128 are not; 250 are
        (0.5, 512, 1500),  # exp(-beta^2) of them count, 78 %: 200 are 257 of a prompt
        (1.0, 512, 4096),  # 37 %: 543 of a prompt
        (2.0, 512, 8192),  # 2 %: 10,900 of a prompt, more than there are
    ],
)
def test_it_grows_until_the_tilt_is_known(beta: float, first: int, most: int):
    found, pieces = look(BankSize(8192, first), beta)
    n = len(found.samples)
    least = min(8192, 200 * PROMPTS * math.exp(beta**2))
    assert 0.9 * least <= n <= most
    assert sum(pieces) == n, "no image is looked at twice"
    assert torch.equal(found.samples.rewards, REWARDS[:n])
    assert torch.equal(found.samples.prompt_index, torch.arange(n) % PROMPTS)
    assert torch.equal(found.rows["other"], 2.0 * REWARDS[:n])


def test_all_of_a_bank_is_looked_at_once_whatever_counts():
    found, pieces = look(BankSize.all_of(10), 3.0)
    assert (len(found.samples), pieces) == (10, [10])


def test_what_was_left_out_is_said():
    size = BankSize(8192, 512)
    assert size.note(8192, "more") == []
    (line,) = size.note(1000, "without --n all are")
    assert "1,000 of its 8,192 images" in line
    assert line.endswith("without --n all are")


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_some_images_say_how_many_are_enough(beta: float):
    index = torch.arange(1024) % PROMPTS
    asked = bank_for_tilt(REWARDS[:1024], index, beta)
    needed = 200 * PROMPTS * math.exp(beta**2)
    assert asked % PROMPTS == 0
    assert needed <= asked <= 2 * needed
    found, _ = look(BankSize.all_of(asked), beta)
    weights = [torch.softmax(beta * found.samples.rewards[p::PROMPTS], 0) for p in range(PROMPTS)]
    assert all(1.0 / w.square().sum() >= 200 for w in weights)
