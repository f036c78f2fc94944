"""What ``NamedReward`` guarantees around any reward."""

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import NamedReward, check_finite, score_and_gradient
from nablaflow.rewards.contract import named, summary
from nablaflow.rewards.pixels import brightness, warmth

PROMPTS = ["a", "b"]


def images(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 4, 4, generator=generator).to(dtype)


def matmul_reward(x, prompts):
    """A reward that autocast would lower to half precision."""
    flat = x.flatten(1)
    return (flat @ flat.T).diagonal()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_give_a_float32_reward_and_gradient(dtype):
    half = images(dtype)
    scores, gradient = score_and_gradient(NamedReward("warmth", warmth), half, PROMPTS)
    assert scores.dtype == gradient.dtype == torch.float32
    leaf = half.float().requires_grad_()
    exact = warmth(leaf, PROMPTS)
    torch.testing.assert_close(scores, exact.detach(), rtol=0, atol=0)
    (expected,) = torch.autograd.grad(exact.sum(), leaf)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


def test_autocast_of_the_caller_does_not_reach_the_reward():
    x = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matmul_reward(x, PROMPTS).dtype == torch.bfloat16
        scores = NamedReward("matmul", matmul_reward)(x, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, x.square().sum((1, 2, 3)))


def test_float64_images_stay_float64():
    assert NamedReward("warmth", warmth)(images(torch.float64), PROMPTS).dtype == torch.float64


def test_gradient_under_no_grad_leaves_the_images_alone():
    x = images()
    with torch.no_grad():
        scores, gradient = score_and_gradient(named(brightness), x, PROMPTS)
    assert not x.requires_grad
    assert not scores.requires_grad
    # Luma's weights sum to one, so an image's gradient does too.
    torch.testing.assert_close(gradient.sum((1, 2, 3)), torch.ones(2))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, p: [0.0, 0.0], r"'mine' returned list: return a torch.Tensor of shape \(2,\)"),
        (lambda x, p: x.mean(), r"'mine' returned shape \(\) for 2 images: return shape \(2,\)"),
        (lambda x, p: x.mean((2, 3)), r"'mine' returned shape \(2, 3\) for 2 images"),
        (lambda x, p: x.new_zeros(2).bfloat16(), r"'mine' returned torch.bfloat16: end it with"),
        (lambda x, p: x.new_tensor([0.0, float("nan")]), "'mine' is NaN or infinite for 1 of 2"),
        (lambda x, p: x.mean((1, 2, 3)) / 0, "'mine' is NaN or infinite for 2 of 2 images"),
    ],
)
def test_a_broken_result_names_the_reward(function, message):
    with pytest.raises(UserError, match=message) as caught:
        NamedReward("mine", function)(images(), PROMPTS)
    assert "\n" not in str(caught.value)


def test_a_gradient_that_is_not_finite_names_the_reward():
    def kink(x, prompts):
        return (x - x.detach()).abs().sum((1, 2, 3)).sqrt()

    with pytest.raises(UserError, match="the gradient of 'kink' is NaN or infinite for 2 of 2"):
        score_and_gradient(named(kink), images(), PROMPTS)


def test_check_finite_counts_images_rather_than_pixels():
    pixels = torch.zeros(3, 3, 2, 2)
    check_finite("mine", pixels)
    pixels[1] = float("inf")
    with pytest.raises(UserError, match="for 1 of 3 images"):
        check_finite("mine", pixels, "gradient")


def test_a_callable_is_named_after_itself():
    assert named(brightness).name == "brightness"
    assert named(torch.nn.Flatten()).name == "Flatten"
    kept = NamedReward("mine", brightness)
    assert named(kept) is kept


def test_what_cannot_be_called_is_refused():
    with pytest.raises(UserError, match="reward 42 is not callable: give a name"):
        named(42)


def test_a_class_is_refused_for_an_instance_of_it():
    """Its call is no score, and what was said of it was about its arguments."""

    class Mine:
        def __call__(self, images, prompts):
            return images.mean((1, 2, 3))

    with pytest.raises(UserError, match=r"^reward Mine is a class: .*such as Mine\(\)$"):
        named(Mine)
    assert named(Mine()).name == "Mine"


def test_summary_is_one_line():
    assert summary(ValueError("first\nsecond")) == "ValueError: first"
    assert summary(KeyError()) == "KeyError"


def test_scores_that_lose_their_gradient_are_named():
    calls: list[int] = []

    def forgets(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        calls.append(1)
        scores = images.mean((1, 2, 3))
        return scores if len(calls) == 1 else scores.detach()

    images = torch.rand(2, 3, 4, 4)
    score_and_gradient(NamedReward("forgets", forgets), images, ["a", "b"])
    with pytest.raises(UserError, match="'forgets' gave scores without a gradient"):
        score_and_gradient(NamedReward("forgets", forgets), images, ["a", "b"])


def test_a_sparse_tensor_is_no_score():
    def sparse(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images.mean((1, 2, 3)).to_sparse()

    with pytest.raises(UserError, match=r"end it with \.to_dense\(\)"):
        NamedReward("sparse", sparse)(torch.rand(2, 3, 4, 4), ["a", "b"])
