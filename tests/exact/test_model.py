"""A mixture as a model to align, against quadrature, Bayes' rule and counting by hand."""

import pytest
import torch
from torch import Tensor, nn

from nablaflow.exact.catalog import named_problem
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.distances import energy_distance, mean_distance, mode_weight_error
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.networks import ValueNetwork, VectorFlowScore
from nablaflow.exact.paths import ALPHA_BAR
from nablaflow.exact.process import exact_process
from nablaflow.exact.rewards import LinearReward
from nablaflow.exact.training import sample_policy
from nablaflow.models import Condition

STEPS = 8
LINE = GaussianMixture([[-1.0], [2.0], [2.5]], [[[0.2]], [[0.6]], [[0.05]]], [0.5, 0.2, 0.3])
PLANE = GaussianMixture(
    [[1.0, 2.0], [-3.0, 0.5]], [[[0.5, 0.2], [0.2, 1.0]], [[0.3, 0.0], [0.0, 0.3]]], [0.7, 0.3]
)


class Constant(nn.Module):
    """A value gradient that depends on state and timestep, and is not zero."""

    def forward(self, x: Tensor, timestep: Tensor, x0_hat: Tensor) -> Tensor:
        return torch.sin(1.7 * x) + 0.01 * timestep[:, None].to(x) - 0.3


def model_of(
    prior: GaussianMixture, network: nn.Module | None = None, steps: int = STEPS
) -> MixtureModel:
    process = exact_process(prior.standardized(), steps)
    return MixtureModel(prior, process, network or Constant(), PassCounter())


def states(n: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(n, 1, 1, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 5, STEPS])
def test_the_references_x0_hat_is_the_posterior_mean_by_quadrature(k: int) -> None:
    """Of the prior in units of its own scale, which is written out here."""
    model = model_of(LINE)
    mean = 0.5 * -1.0 + 0.2 * 2.0 + 0.3 * 2.5
    second = 0.5 * (0.2 + 1.0) + 0.2 * (0.6 + 4.0) + 0.3 * (0.05 + 6.25)
    scale = (second - mean**2) ** 0.5
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)  # standard units
    log_prior = LINE.log_prob((scale * grid + mean)[:, None])
    x = states(6, 1)
    alpha_bar = float(model.process.alpha_bar[k])
    likelihood = -0.5 * (x.reshape(-1, 1) - alpha_bar**0.5 * grid).square() / (1 - alpha_bar)
    expected = (log_prior + likelihood).softmax(1) @ grid
    with model.reference():
        found = model.predict(x, torch.full((6,), k), Condition()).x0_hat
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_of_a_single_normal_it_is_bayes_rule(k: int) -> None:
    covariance = torch.tensor([[1.2, 0.5], [0.5, 0.8]], dtype=torch.float64)  # of scale 1
    prior = GaussianMixture([[3.0, -1.0]], covariance[None])
    model, x = model_of(prior), states(5, 2)
    alpha_bar = model.process.alpha_bar[k].double()
    total = alpha_bar * covariance + (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)
    expected = x @ (alpha_bar.sqrt() * covariance @ total.inverse()).T
    with model.reference():
        found = model.predict(x, torch.full((5,), k), Condition()).x0_hat
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", [False, True])
def test_both_predictions_are_of_one_state(policy: bool) -> None:
    model, k = model_of(PLANE), torch.arange(1, STEPS + 1)
    x = states(STEPS, 2)
    if policy:
        found = model.predict(x, k, Condition())
    else:
        with model.reference():
            found = model.predict(x, k, Condition())
    alpha_bar = model.process.alpha_bar.double()[k].reshape(-1, 1, 1, 1)
    rebuilt = alpha_bar.sqrt() * found.x0_hat + (1 - alpha_bar).sqrt() * found.epsilon
    torch.testing.assert_close(rebuilt, x, rtol=1e-9, atol=1e-9)


class Difference(nn.Module):
    """Grad V_k of a tilt: the difference of two scores."""

    def __init__(self, tilt: GaussianMixture, prior: GaussianMixture) -> None:
        super().__init__()
        self.tilt, self.prior = tilt, prior

    def forward(self, x: Tensor, timestep: Tensor, x0_hat: Tensor) -> Tensor:
        alpha_bar = ALPHA_BAR[timestep]
        return self.tilt.score(x, alpha_bar) - self.prior.score(x, alpha_bar)


@pytest.mark.parametrize("prior", [LINE, PLANE], ids=["line", "plane"])
def test_with_the_exact_value_gradient_the_policy_predicts_what_a_model_of_the_tilt_does(
    prior: GaussianMixture,
) -> None:
    standard = prior.standardized()
    tilt = LinearReward([0.7, -0.4][: prior.dim]).tilt(standard, 1.0)
    model = model_of(prior, Difference(tilt, standard))
    x, k = states(STEPS, prior.dim), torch.arange(1, STEPS + 1)
    alpha_bar = model.process.alpha_bar.double()[k]
    score = tilt.score(x.flatten(1), alpha_bar)
    alpha_bar = alpha_bar[:, None]
    expected = (x.flatten(1) + (1 - alpha_bar) * score) / alpha_bar.sqrt()
    found = model.predict(x, k, Condition()).x0_hat.flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ring", "unequal"])
def test_a_policy_of_the_exact_value_gradient_samples_the_tilt(name: str) -> None:
    """The laboratory's own error is below what can be seen: the rest of it is the methods'."""
    problem, n = named_problem(name), 3000
    prior, target = problem.prior, problem.target
    assert isinstance(target, GaussianMixture)
    means, scale = (target.means - prior.mean) / prior.scale, prior.scale
    tilt = GaussianMixture(means, target.covariances / scale**2, target.weights)
    network = Difference(tilt, prior.standardized())
    model = MixtureModel(prior, problem.process, network, PassCounter())
    samples = sample_policy(model, n, seed=1)
    exact = [target.sample(n, torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    floor = 2.0 * mean_distance(*exact) / n
    assert energy_distance(samples, exact[0]) < 2.0 * floor
    assert mode_weight_error(samples, problem.modes, problem.mode_weights) < 0.02
    assert energy_distance(prior.sample(n, torch.Generator().manual_seed(4)), exact[0]) > 20 * floor


def test_an_untrained_network_is_the_reference() -> None:
    model = model_of(PLANE, ValueNetwork(2, 16, 2, inputs=2))
    x, k = states(STEPS, 2).float(), torch.arange(1, STEPS + 1)
    policy = model.predict(x, k, Condition())
    with model.reference():
        reference = model.predict(x, k, Condition())
    assert torch.equal(policy.x0_hat, reference.x0_hat)
    assert policy.x0_hat.requires_grad
    assert not reference.x0_hat.requires_grad


def test_the_policy_is_back_after_the_reference_even_when_something_fails() -> None:
    model = model_of(PLANE)
    x, k = states(STEPS, 2), torch.arange(1, STEPS + 1)
    before = model.predict(x, k, Condition()).x0_hat
    with pytest.raises(RuntimeError, match="in between"), model.reference():
        raise RuntimeError("in between")
    assert torch.equal(model.predict(x, k, Condition()).x0_hat, before)


def test_single_precision_is_near_double_at_every_step() -> None:
    model = model_of(PLANE, steps=50)
    x, k = states(50, 2), torch.arange(1, 51)
    double = model.predict(x, k, Condition()).x0_hat
    single = model.predict(x.float(), k, Condition()).x0_hat
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_states_and_points_are_each_others_inverse() -> None:
    model = model_of(PLANE)
    points = PLANE.sample(100, torch.Generator().manual_seed(0))
    mean = torch.tensor([0.7 * 1.0 - 0.3 * 3.0, 0.7 * 2.0 + 0.3 * 0.5], dtype=torch.float64)
    between = torch.tensor([0.21 * 16.0, 0.21 * 2.25], dtype=torch.float64)
    within = torch.tensor([0.7 * 0.5 + 0.3 * 0.3, 0.7 * 1.0 + 0.3 * 0.3], dtype=torch.float64)
    scale = (within + between).mean().sqrt()
    state = ((points - mean) / scale).reshape(100, 1, 1, 2)
    torch.testing.assert_close(model.points(state), points)
    images = model.decode(state)
    assert images.shape == (100, 3, 1, 2)
    for channel in range(3):
        torch.testing.assert_close(images[:, channel, 0], points)
    assert model.state_shape == (1, 1, 2)
    assert model.image_size == (1, 2)
    assert model.points(state.float()).dtype == torch.float64


def test_passes_are_counted_forward_and_backward() -> None:
    counter = PassCounter()
    network = ValueNetwork(2, 8, 1, inputs=2)
    model = MixtureModel(PLANE, exact_process(PLANE.standardized(), STEPS), network, counter)
    x, k = states(5, 2).float(), torch.full((5,), 3)
    with torch.no_grad():
        model.predict(x, k, Condition())
    assert counter.passes == 5  # one forward of five states
    with model.reference():
        model.predict(x, k, Condition())
    assert counter.passes == 10  # the reference has no weights that train: nothing to go back
    loss = model.predict(x, k, Condition()).epsilon.square().sum()
    assert counter.passes == 15
    loss.backward()
    assert counter.passes == 20  # for the weights
    leaf = x.clone().requires_grad_()
    with model.reference():
        prediction = model.predict(leaf, k, Condition())
    torch.autograd.grad(prediction.x0_hat.sum(), leaf, retain_graph=True)
    assert counter.passes == 30  # for the state
    torch.autograd.grad(prediction.epsilon.sum(), leaf)
    assert counter.passes == 35  # and again
    flow = VectorFlowScore(2, 8, 1, counter)
    flow(x[:2], torch.tensor([3, 4]), Condition()).sum().backward()
    assert counter.passes == 39


def test_a_flow_score_is_zero_before_training_and_of_the_states_shape() -> None:
    flow = VectorFlowScore(3, 8, 2, PassCounter())
    x = states(4, 3).float()
    found = flow(x, torch.tensor([0, 1, 500, 999]), Condition())
    assert torch.equal(found, torch.zeros_like(x))


def test_a_value_network_tells_timesteps_apart() -> None:
    torch.manual_seed(0)
    network = ValueNetwork(2, 32, 2, inputs=2)
    nn.init.normal_(network.last.weight)
    x, timesteps = torch.zeros(1000, 2), torch.arange(1000)
    with torch.no_grad():
        found = network(x, timesteps, x)
    assert (found.diff(dim=0).norm(dim=1) > 0).all()
