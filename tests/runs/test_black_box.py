"""Methods that need no reward gradient, in the loop: with a reward that has none."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest

from nablaflow.errors import UserError
from nablaflow.runs.setup import Parts
from tests.support.pipelines import perturb
from tests.training.updates import train

MakeParts = Callable[..., Parts]

METHODS = {
    "ddpo": ["method=ddpo"],
    "ddpo, score function": ["method=ddpo", "method.form=score-function"],
    "ddpo, tilted": [
        *("method=ddpo", "method.advantage=centred", "method.max_advantage=null"),
        *("method.kl_weight=1.0", "method.kl_to_go=true"),
    ],
    "dag-db": ["method=dag-db"],
    "dag-kl": ["method=dag-kl"],
    "rwr": ["method=reward-weighted-regression"],
    "rwr, tilt": ["method=reward-weighted-regression", "method.weights=tilt"],
    "flow-grpo": ["method=flow-grpo"],
    "diffusion-nft": ["method=diffusion-nft"],
    "diffusion-nft, without noise": ["method=diffusion-nft", "sampler.name=euler"],
}
GIVEN = ["reward=jpeg_compressibility", "method.beta=0.5"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_by_a_reward_without_gradient(make_parts: MakeParts, name: str):
    trainer = make_parts(*METHODS[name], *GIVEN).trainer
    before = copy.deepcopy(trainer.checkpoint().tensors)
    records = train(trainer, 2)
    after = trainer.checkpoint().tensors
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert trainer.method.uses_flow == ("flow" in after)
    for group in ("policy", *(["flow"] if trainer.method.uses_flow else [])):
        assert any(not before[group][key].equal(after[group][key]) for key in after[group]), group


@pytest.mark.parametrize("name", METHODS)
def test_the_split_does_not_change_the_figures(make_parts: MakeParts, name: str):
    def trained(*split: str):
        # Not the size of a file, which a rounding can change by a byte.
        parts = make_parts(*METHODS[name], "method.beta=0.5", "reward=warmth", *split)
        perturb(parts.model.network, scale=0.05)  # else policy and reference are the same
        return train(parts.trainer, 1)

    (split,), (whole,) = trained("training.micro_batch=3", "training.rollout_batch=1"), trained()
    # Densities are sums over all values of a state, of differences of near numbers, and kernels
    # round by where their memory happens to begin: 1.1e-3 was seen of a loss whose terms cancel.
    assert split == pytest.approx(whole, rel=5e-3, abs=1e-6)


def test_clipping_begins_at_the_second_step_of_a_rollout(make_parts: MakeParts):
    """At the first one the policy is the one that sampled; a learning rate of 1e-2 moves it far."""
    one = train(make_parts("method=ddpo", *GIVEN).trainer, 1)[0]
    two = train(make_parts("method=ddpo", *GIVEN, "training.steps_per_rollout=2").trainer, 1)[0]
    assert one["clip_fraction"] == 0
    assert two["clip_fraction"] > 0.1


def test_one_image_a_prompt_is_refused_before_training(make_parts: MakeParts):
    one = ("training.images_per_prompt=1", "training.prompts_per_update=4")
    for name in ("ddpo", "rwr"):
        with pytest.raises(UserError, match=r"^training\.images_per_prompt: .* 2 or more; these"):
            make_parts(*METHODS[name], *GIVEN, *one)
    train(make_parts(*METHODS["ddpo"], "method.advantage=batch", *GIVEN, *one).trainer, 1)


def test_steps_that_do_not_divide_the_trajectories_are_refused(make_parts: MakeParts):
    with pytest.raises(
        UserError, match=r"^training\.steps_per_rollout: 4 trajectories .* divisor$"
    ):
        make_parts("method=ddpo", "training.steps_per_rollout=3", *GIVEN)


def test_weights_of_whole_trajectories_are_refused_in_half_precision(make_parts: MakeParts):
    for method in ("method=path-weighted-matching", "method=reward-weighted-regression"):
        given = [method, "method.beta=0.5", "reward=warmth", "training.precision=bf16"]
        if "regression" in method:
            given.append("method.weights=tilt")
        with pytest.raises(UserError, match=r"^training\.precision: .* use float32$"):
            make_parts(*given)
