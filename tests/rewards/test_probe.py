"""The probe, on rewards that break the contract each in one way."""

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import REWARDS, RewardProbe, WeightedSum, load, probe, require_gradient
from nablaflow.rewards.contract import NamedReward
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork

WITHOUT_GRADIENT = {
    "jpeg_compressibility",
    "jpeg_incompressibility",
    "preference_rule",
    "shape_shown",
}


def mean(images):
    return images.mean((1, 2, 3))


def run(reward, prompts=("a cat",), height=16, width=24):
    return probe(reward, height=height, width=width, device="cpu", prompts=list(prompts))


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_listed_reward_keeps_the_contract(name):
    found = run(load(name), height=64, width=64)
    assert found.differentiable == (name not in WITHOUT_GRADIENT)


def test_four_different_colourful_images_and_four_prompts_are_shown():
    seen = []

    def spy(images, prompts):
        seen.append((images.detach().clone(), prompts))
        return mean(images)

    run(spy, prompts=["a", "b", "c"])
    images, prompts = seen[0]
    assert images.shape == (4, 3, 16, 24)
    assert 0 < images.min() < images.max() < 1
    assert images.flatten(1).std(1).min() > 0.1
    assert (REWARDS["colorfulness"](images, prompts) > 0.1).all()
    assert prompts == ["a", "b", "c", "a"]
    for part, part_prompts in seen:
        assert len(part) == len(part_prompts)


def test_no_prompts_means_empty_ones():
    seen = set()

    def spy(images, prompts):
        seen.update(prompts)
        return mean(images)

    run(spy, prompts=[])
    assert seen == {""}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda x, p: None, "returned NoneType: return a torch.Tensor"),
        (lambda x, p: mean(x)[:, None], r"returned shape \(4, 1\) for 4 images"),
        (lambda x, p: mean(x).squeeze(), r"returned shape \(\) for 1 images"),
        (lambda x, p: mean(x).double(), r"returned torch.float64: end it with \.float\(\)"),
        (lambda x, p: mean(x).half(), r"returned torch.float16: end it with \.float\(\)"),
        (lambda x, p: mean(x).round().long(), r"returned torch.int64: end it with \.float\(\)"),
        (lambda x, p: mean(x) * float("nan"), "is NaN or infinite for 4 of 4 images"),
        (lambda x, p: mean(x).log() / 0, "is NaN or infinite for 4 of 4 images"),
        (lambda x, p: x.missing(), r"fails on 4 images of shape \(3, 16, 24\) \(AttributeError"),
        (lambda x: mean(x), r"it must take \(images, prompts\)"),
    ],
)
def test_a_broken_contract_is_one_line_that_names_the_reward(reward, message):
    with pytest.raises(UserError, match=message) as caught:
        run(reward)
    assert "'<lambda>'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scores_on_another_device_are_refused():
    def elsewhere(images, prompts):
        return torch.empty(len(images), device="meta")

    with pytest.raises(UserError, match=r"scores on meta, .* end it with .to\(images.device\)"):
        run(elsewhere)


GENERATOR = torch.Generator().manual_seed(0)


def batch_norm(images, prompts):
    return mean((images - images.mean(0)) / images.std(0, correction=0).add(1e-3))


@pytest.mark.parametrize(
    "leak",
    [
        lambda x, p: mean(x) - mean(x).mean(),
        lambda x, p: mean(x) / mean(x).max(),
        lambda x, p: mean(x) + 0.1 * len(p),
        lambda x, p: mean(x) + torch.rand(len(x), generator=GENERATOR),
        batch_norm,
    ],
)
def test_a_reward_that_sees_the_rest_of_the_batch_is_refused(leak):
    with pytest.raises(UserError, match="another value when the rest of the batch changes"):
        run(leak)


class Rough(ScoringNetwork):
    """A scorer whose rounding depends on the size of the batch, by a part in 200."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(1, 1)

    def forward(self, images, prompts):
        return mean(images) * (1 + 0.005 * (len(images) < 4))


class RoughSettings(ScorerSettings):
    def network(self):
        return Rough()


def rough(dtype):
    return RoughSettings(dtype=dtype).build("rough", load)


def test_rounding_that_fits_bf16_is_allowed_to_scorers_in_bf16_alone():
    assert run(rough("bf16")).differentiable
    total = WeightedSum(((1.0, rough("bf16")), (0.1, load("warmth"))))
    assert run(NamedReward(total.name, total)).differentiable
    with pytest.raises(UserError, match="another value when the rest of the batch changes"):
        run(rough("float32"))


def nan_slope(images, prompts):
    # The slope of sqrt at 0 is infinite, times a slope of 0.
    return mean(images) + (images - images).square().sum((1, 2, 3)).sqrt()


def in_numpy(images, prompts):
    return torch.from_numpy(images.cpu().numpy().mean((1, 2, 3)))


@torch.no_grad()
def under_no_grad(images, prompts):
    return mean(images)


def of_a_parameter(images, prompts):
    return torch.nn.Parameter(torch.ones(1)) * mean(images.detach())


def of_one_image_only(images, prompts):
    return torch.where(torch.arange(len(images)) == 0, mean(images), mean(images.detach()))


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (under_no_grad, "its result has no graph"),
        (in_numpy, "it fails on images that need a gradient (RuntimeError: Can't call numpy()"),
        (of_a_parameter, "its graph does not lead back to the images"),
        (lambda x, p: mean(x.round()), "its gradient is zero for 4 of 4 images"),
        (of_one_image_only, "its gradient is zero for 3 of 4 images"),
        (nan_slope, "its gradient is NaN or infinite"),
        (REWARDS["jpeg_compressibility"], "its result has no graph"),
    ],
)
def test_a_missing_gradient_has_a_reason(reward, reason):
    found = run(reward)
    assert not found.differentiable
    assert found.reason.startswith(reason)


def test_a_gradient_is_looked_for_under_no_grad_too():
    with torch.no_grad():
        assert run(REWARDS["warmth"]) == RewardProbe(True, "")


def test_a_sum_needs_the_gradient_of_every_term():
    assert run(load("warmth + symmetry")).differentiable
    mixed = run(load("warmth + 0.1*jpeg_compressibility"))
    assert not mixed.differentiable
    assert mixed.reason.startswith("in its term 'jpeg_compressibility', its result has no graph")


def test_a_method_that_needs_a_gradient_refuses():
    require_gradient("warmth", RewardProbe(True), [])
    none = RewardProbe(False, "its result has no graph")
    with pytest.raises(UserError) as caught:
        require_gradient("mine", none, ["ddpo", "flow_grpo"])
    assert str(caught.value) == (
        "reward 'mine' has no usable gradient: its result has no graph; "
        "choose a method that needs no gradient: ddpo, flow_grpo"
    )
    with pytest.raises(UserError, match="no built-in method can use it yet"):
        require_gradient("mine", none, [])
