"""A value fitted to the reference: against closed forms of a normal prior."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.estimators import LogFlowFit, ReferenceSamples, contrastive, fit_log_flow
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.networks import ValueNetwork, VectorLogFlow
from nablaflow.exact.problem import Problem
from nablaflow.exact.rewards import LinearReward
from nablaflow.models import ConvLogFlow, LogFlow
from nablaflow.models.condition import Condition
from nablaflow.rewards import NamedReward

STEPS = 8
SAMPLES = 4096


def normal_model() -> MixtureModel:
    """The exact reference of a unit normal in two dimensions."""
    prior = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1))
    problem = Problem(prior=prior, reward=LinearReward(torch.ones(2)), beta=1.0, steps=STEPS)
    policy = ValueNetwork(2, 8, 1, inputs=2)
    return MixtureModel(problem.prior, problem.process, policy, PassCounter())


def square(images: Tensor, prompts: list[str]) -> Tensor:
    """Of the first value."""
    return images[:, 0, 0, 0].square()


def nothing_learned() -> LogFlow:
    """It stays zero, so that the mix is the predicted reward's alone."""

    class Nothing(LogFlow):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
            return 0.0 * self.weight * x.flatten(1).sum(1)

    return Nothing()


def samples_of(model: MixtureModel, reward: NamedReward, n: int = SAMPLES) -> ReferenceSamples:
    """Exact ones of the prior, in place of the sampler's."""
    x0 = torch.randn(n, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    rewards = reward(model.decode(x0), [""] * n).double()
    return ReferenceSamples(x0, rewards, [""], model.condition([""]), [torch.arange(n)])


def fitted(
    network: LogFlow, beta: float, samples: int = SAMPLES
) -> tuple[MixtureModel, LogFlowFit]:
    model, reward = normal_model(), NamedReward("square", square)
    generator = torch.Generator().manual_seed(2)
    found = samples_of(model, reward, samples)
    return model, fit_log_flow(network, model, reward, beta, found, generator, batch=samples)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on how well the network is fitted."""
    monkeypatch.setattr(contrastive, "MOST", 20)


@pytest.mark.usefixtures("quick")
def test_trust_is_what_the_closed_form_says():
    """For r = x^2 and x_0 | x_k ~ N(m, s) the log of E exp(beta r) is beta m^2 / (1 - 2 beta s)."""
    beta = 0.2
    model, fit = fitted(nothing_learned(), beta, 400_000)
    left_open = 1.0 - model.process.alpha_bar  # of a unit normal: 1 - abar, x0_hat = sqrt(abar) x
    wanted = 1.0 / (1.0 - 2.0 * beta * left_open[1:])
    informed = model.process.alpha_bar[1:] > 0.2  # elsewhere hardly anything depends on gamma
    assert informed.sum() >= 4
    assert fit.gamma[0] == 1.0
    assert (fit.gamma[1:] / wanted - 1.0)[informed].abs().max() < 0.1
    assert wanted[informed].max() > 1.2, "so a constant 1 would fail"


def test_a_log_flow_finds_what_the_predicted_reward_does_not_say():
    """A narrow bump at 1: r(x0_hat) is flat where x_k leaves much open, and the value is not."""
    model = normal_model()
    width, beta = 0.15, 3.0
    reward = NamedReward(
        "bump", lambda images, prompts: torch.exp(-((images[:, 0, 0, 0] - 1.0) / width).square())
    )
    torch.manual_seed(0)
    network = VectorLogFlow(2, 32, 2, PassCounter())
    samples, generator = samples_of(model, reward), torch.Generator().manual_seed(2)
    fit = fit_log_flow(network, model, reward, beta, samples, generator)
    k = int((model.process.alpha_bar - 0.5).abs().argmin())
    x = torch.linspace(-2.0, 2.0, 41)
    states = torch.stack([x, torch.zeros(41)], 1).reshape(-1, 1, 1, 2)
    steps = torch.full((41,), k)
    found = fit.score(model, states, steps, model.condition([""]).expand(41))[:, 0, 0, 0]
    predicted = model.predict(states, steps, model.condition([""]).expand(41)).x0_hat[:, 0, 0, 0]
    bump = torch.exp(-((predicted - 1.0) / width).square())
    slope = -2.0 * (predicted - 1.0) / width**2 * bump * model.process.alpha_bar[k].sqrt()
    mixed = found + beta * fit.gamma[k] * slope
    wanted = quadrature_gradient(x, model.process.alpha_bar[k].item(), beta, width)
    ahead = beta * slope
    weight = torch.exp(-0.5 * x.square())  # of x_k itself

    def off(values: Tensor) -> float:
        return ((weight * (values - wanted).square()).sum() / (weight * wanted**2).sum()).item()

    assert off(ahead) > 1.0, "worse than nothing"
    assert off(mixed) < 0.3
    assert fit.explained[1, k] > fit.explained[0, k] + 0.05


def contrast_of(weights: Tensor) -> contrastive.Contrast:
    n = len(weights)
    x, k = torch.zeros(n, 1, 1, 1), torch.ones(n).long()
    return contrastive.Contrast(x, k, weights, Condition(), "")


def test_a_level_that_tells_nothing_stays_forward_looking():
    """Values that have nothing to do with the weights, beside the same that have."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        log_weight, *noise = torch.randn(3, 1024, generator=generator, dtype=torch.float64)
        contrast = contrast_of(log_weight.softmax(0))
        noisy = [torch.stack(noise) * 0.05]
        assert contrastive._mixed(noisy, [contrast])[:2] == (1.0, 0.0)
        telling = [torch.stack([0.5 * log_weight, noise[0]])]
        gamma, delta, _, explained = contrastive._mixed(telling, [contrast])
        assert gamma == pytest.approx(2.0, abs=0.2)
        assert delta < 0.1
        assert explained > 0.3


def quadrature_gradient(x: Tensor, alpha_bar: float, beta: float, width: float) -> Tensor:
    """d/dx log E[exp(beta r(x_0)) | x_k = x] for a unit normal, by a fine grid."""
    grid = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)
    r = torch.exp(-((grid - 1.0) / width).square())
    at = x.double().clone().requires_grad_()
    spread = 1.0 - alpha_bar
    log_weight = -0.5 * (grid - math.sqrt(alpha_bar) * at[:, None]).square() / spread
    value = torch.logsumexp(log_weight + beta * r, 1) - torch.logsumexp(log_weight, 1)
    (gradient,) = torch.autograd.grad(value.sum(), at)
    return gradient.float()


@pytest.mark.usefixtures("quick")
def test_the_same_generator_gives_the_same_fit():
    def network() -> VectorLogFlow:
        torch.manual_seed(0)
        return VectorLogFlow(2, 8, 1, PassCounter())

    (_, first), (_, second) = fitted(network(), 0.1), fitted(network(), 0.1)
    for name, value in first.state().items():
        assert torch.equal(value, second.state()[name]), name


@pytest.mark.usefixtures("quick")
def test_a_state_that_is_taken_is_the_fit():
    torch.manual_seed(0)
    model, fit = fitted(VectorLogFlow(2, 8, 1, PassCounter()), 0.1)
    other = LogFlowFit.unfitted(VectorLogFlow(2, 8, 1, PassCounter()), STEPS)
    assert not other.fitted
    other.take(fit.state())
    assert other.fitted
    x = torch.randn(5, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    given = model, x, torch.arange(1, 6), model.condition([""]).expand(5)
    assert torch.equal(other.score(*given), fit.score(*given))


def test_a_reward_that_never_varies_is_refused():
    model = normal_model()
    flat = NamedReward("flat", lambda images, prompts: torch.ones(len(images)))
    samples = samples_of(model, flat)
    with pytest.raises(UserError, match="reward: flat gives all reference images of a prompt"):
        fit_log_flow(nothing_learned(), model, flat, 1.0, samples, torch.Generator())


@pytest.mark.usefixtures("quick")
def test_a_prompt_is_contrasted_with_itself_alone():
    """What a whole prompt has more of than another is no information about a state."""
    model, reward = normal_model(), NamedReward("square", square)
    samples = samples_of(model, reward)
    rows = [torch.arange(SAMPLES // 2), torch.arange(SAMPLES // 2, SAMPLES)]
    lifted = samples.rewards.clone()
    lifted[rows[1]] += 100.0
    two = replace(samples, prompts=["a", "b"], condition=model.condition(["a", "b"]), rows=rows)
    found = [
        fit_log_flow(nothing_learned(), model, reward, 0.1, part, torch.Generator().manual_seed(3))
        for part in (two, replace(two, rewards=lifted))
    ]
    assert torch.allclose(found[0].gamma, found[1].gamma, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 64, 64), (16, 24, 40), (3, 28, 28)])
def test_the_network_takes_states_of_any_size_and_begins_at_zero(shape: tuple[int, int, int]):
    network = ConvLogFlow(shape[0], min(shape[1:]), 6)
    hidden = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    found = network(x, torch.tensor([10, 900]), Condition(hidden=hidden))
    assert found.shape == (2,)
    assert not found.any()
    assert sum(p.numel() for p in network.parameters()) < 3e5


def test_a_log_flow_of_another_size_is_not_taken():
    wide, narrow = (LogFlowFit.unfitted(ConvLogFlow(4, 8, 6, n), 3) for n in (48, 24))
    wide.take(wide.state())
    with pytest.raises(UserError, match="another size than this version makes"):
        narrow.take(wide.state())


def test_time_and_prompt_reach_the_network():
    torch.manual_seed(0)
    network = ConvLogFlow(4, 8, 6)
    torch.nn.init.normal_(network.head.get_parameter("2.weight"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator).expand(3, -1, -1, -1)
    hidden = torch.randn(2, 5, 6, generator=generator)[[0, 0, 1]]
    found = network(x, torch.tensor([10, 900, 10]), Condition(hidden=hidden))
    assert len(found.unique()) == 3


@pytest.mark.parametrize(
    ("samples", "iterations"), [(2, 1), (512, 200), (1024, 400), (2048, 800), (8192, 800)]
)
def test_few_samples_are_not_learned_by_heart(samples: int, iterations: int):
    """288 in each iteration, and each of the three quarters that are fitted to 150 times."""
    assert contrastive.iterations(samples) == iterations
    assert contrastive.work(10, samples) == iterations + 10 * contrastive.LEVEL
