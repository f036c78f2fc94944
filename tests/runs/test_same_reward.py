"""A reward that tells no image from another trains nothing, and every method says so."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from nablaflow.methods.groups import tells_apart
from nablaflow.rewards.contract import NamedReward
from nablaflow.runs import align
from nablaflow.runs.setup import Parts
from nablaflow.training import loop
from nablaflow.training.rollout import Rollout
from tests.support.tiny_run import MakeConfig

LINE = "after update 1: the reward is the same for all images of a prompt"


def by_prompt(images: Tensor, prompts: list[str]) -> Tensor:
    """With a gradient, as one that is clamped has beside its ends."""
    level = torch.tensor([float(len(prompt)) for prompt in prompts])
    return level + (images - images.detach()).flatten(1).sum(1)


@pytest.mark.usefixtures("train_only")
@pytest.mark.parametrize(
    "method",
    [
        "{name: residual-nabla-db, reverse_weight: 0.0, gamma: one}",
        "refl",
        "ddpo",
        "{name: dag-db, gamma: one}",
        "flow-grpo",
        "diffusion-nft",
        "reward-weighted-regression",
    ],
)
def test_it_is_said_after_the_first_update(
    method: str, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
):
    config = make_config(f"method={method}", "method.beta=1.0", "training.updates=2")
    align.run(config, reward=NamedReward("same", by_prompt))
    told = capsys.readouterr().err
    assert told.count("the reward is the same for all images of a prompt") == 1
    assert LINE in (config.output_dir / "log.txt").read_text()


@pytest.mark.usefixtures("train_only")
def test_nothing_is_said_of_one_that_tells_them_apart(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
):
    align.run(make_config("method=ddpo", "training.updates=1"))
    assert "the reward is the same" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scores", "prompts", "apart"),
    [
        ([1.0, 1.0, 2.0, 2.0], ["a", "a", "b", "b"], False),
        ([1.0, 1.0, 2.0, 2.5], ["a", "a", "b", "b"], True),
        ([1.0, 1.0], ["a", "b"], False),
        ([1.0, 2.0], ["a", "b"], True),
        ([1.0], ["a"], True),
    ],
)
def test_images_are_held_against_those_of_their_prompt(
    scores: list[float], prompts: list[str], apart: bool
):
    assert tells_apart(torch.tensor(scores), prompts) == apart


@pytest.mark.parametrize(("other", "alike"), [(1.0, True), (2.0, False)])
def test_images_of_a_prompt_are_compared_whichever_processes_have_them(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch, other: float, alike: bool
):
    """Each of two has one image of the one prompt."""
    trainer = make_parts("flow=null", "method={name: ddpo}").trainer
    both = Mock(spec=Accelerator)
    both.gather.side_effect = lambda own: own and torch.cat([own, own.new_tensor([other])])
    monkeypatch.setattr(trainer, "accelerator", both)
    monkeypatch.setattr(loop, "gather_object", lambda own: [*own, *own])
    rollout = Mock(spec=Rollout, scores=torch.tensor([1.0]), prompts=["a"], components={})
    trainer._observe(rollout)
    assert trainer.alike == alike
