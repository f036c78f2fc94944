"""What a network predicts: round trips between noise, clean state, v and score."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from nablaflow.diffusion import predict_from, score
from nablaflow.diffusion.prediction import network_input

ALPHA_BARS = st.floats(0.004, 0.9995)
SEEDS = st.integers(0, 2**31)


def known_state(seed: int, alpha_bar: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, epsilon = torch.randn(2, 3, 1, 2, 4, generator=generator, dtype=torch.float64)
    level = torch.tensor(alpha_bar, dtype=torch.float64)
    return x0, epsilon, level.sqrt() * x0 + (1 - level).sqrt() * epsilon, level


@given(seed=SEEDS, alpha_bar=ALPHA_BARS)
@pytest.mark.parametrize(
    "parameterization", ["epsilon", "v_prediction", "sample", "flow_prediction"]
)
def test_each_parameterization_gives_back_the_noise_and_the_clean_state(
    parameterization: str, seed: int, alpha_bar: float
) -> None:
    x0, epsilon, x, level = known_state(seed, alpha_bar)
    outputs = {
        "epsilon": epsilon,
        "v_prediction": level.sqrt() * epsilon - (1 - level).sqrt() * x0,
        "sample": x0,
        "flow_prediction": epsilon - x0,
    }
    prediction = predict_from(outputs[parameterization], x, level, parameterization)
    torch.testing.assert_close(prediction.x0_hat, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.epsilon, epsilon, rtol=1e-9, atol=1e-9)


@given(seed=SEEDS, s=st.floats(0.001, 1.0))
def test_a_flow_matching_network_sees_the_state_on_the_straight_line(seed: int, s: float) -> None:
    """And its velocity is read back in either units: arXiv 2210.02747's x_0 = x_s - s v."""
    length = (1 - s) ** 2 + s**2
    x0, epsilon, x, level = known_state(seed, (1 - s) ** 2 / length)
    straight = (1 - s) * x0 + s * epsilon
    torch.testing.assert_close(network_input(x, level, "flow_prediction"), straight)
    velocity = epsilon - x0 + 0.1 * straight  # of no perfect network
    found = predict_from(velocity, x, level, "flow_prediction")
    torch.testing.assert_close(found.x0_hat, straight - s * velocity)
    torch.testing.assert_close(found.epsilon, straight + (1 - s) * velocity)
    assert network_input(x, level, "epsilon") is x


@given(seed=SEEDS, alpha_bar=ALPHA_BARS)
def test_the_score_is_the_gradient_of_the_noising_density(seed: int, alpha_bar: float) -> None:
    x0, epsilon, x, level = known_state(seed, alpha_bar)
    leaf = x.clone().requires_grad_()
    density = Normal(level.sqrt() * x0, (1 - level).sqrt()).log_prob(leaf).sum()
    (expected,) = torch.autograd.grad(density, leaf)
    found = score(predict_from(epsilon, x, level, "epsilon"), level)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.99])
def test_the_posterior_mean_of_a_gaussian_gives_its_marginal_score(alpha_bar: float) -> None:
    """Tweedie: E[x0 | x], as a ``sample`` prediction, must give grad log p(x)."""
    mean = torch.tensor([0.4, -1.0], dtype=torch.float64)
    covariance = torch.tensor([[1.5, 0.6], [0.6, 0.7]], dtype=torch.float64)
    noise = (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)
    marginal = MultivariateNormal(alpha_bar**0.5 * mean, alpha_bar * covariance + noise)
    x = torch.tensor([[0.3, 2.0], [-1.2, 0.1]], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(marginal.log_prob(x).sum(), x)
    # Bayes in information form, which shares nothing with the marginal above.
    precision = covariance.inverse() + alpha_bar / (1 - alpha_bar) * torch.eye(2)
    evidence = covariance.inverse() @ mean + alpha_bar**0.5 / (1 - alpha_bar) * x.detach()
    x0_hat = torch.linalg.solve(precision, evidence.T).T
    shaped = x.detach().reshape(2, 1, 1, 2)
    level = torch.tensor(alpha_bar, dtype=torch.float64)
    found = score(predict_from(x0_hat.reshape(2, 1, 1, 2), shaped, level, "sample"), level)
    torch.testing.assert_close(found.reshape(2, 2), expected)


def test_another_parameterization_is_an_error() -> None:
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="velocity"):
        predict_from(x, x, torch.tensor(0.5), "velocity")
