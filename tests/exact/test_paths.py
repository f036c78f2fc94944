"""The laboratory's flow-matching process: quadrature, Bayes' rule, and what each noise forgets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nablaflow.diffusion import kernel_mean
from nablaflow.errors import UserError
from nablaflow.exact import GaussianMixture, LinearReward, Problem, evaluate
from nablaflow.exact.contenders import CONTENDERS, fits
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.networks import ValueNetwork, VectorFlowScore
from nablaflow.exact.paths import FLOW, PATHS, TIMESTEPS
from nablaflow.exact.process import bare_process, exact_process
from nablaflow.exact.study import LabStudy
from nablaflow.exact.training import LabSettings, sample_policy
from nablaflow.models import Condition

STEPS = 8
LINE = GaussianMixture([[-1.0], [2.0], [2.5]], [[[0.2]], [[0.6]], [[0.05]]], [0.5, 0.2, 0.3])
PLANE = GaussianMixture(
    [[1.0, 2.0], [-3.0, 0.5]], [[[0.5, 0.2], [0.2, 1.0]], [[0.3, 0.0], [0.0, 0.3]]], [0.7, 0.3]
)
BETA, DIRECTION = 1.0, [0.8]


class Zero(nn.Module):
    def forward(self, x: Tensor, timestep: Tensor, x0_hat: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Tilted(nn.Module):
    """The exact value gradient of a linear reward's tilt: the difference of two scores."""

    def __init__(self, prior: GaussianMixture, tilt: GaussianMixture) -> None:
        super().__init__()
        self.prior, self.tilt = prior, tilt

    def forward(self, x: Tensor, timestep: Tensor, x0_hat: Tensor) -> Tensor:
        alpha_bar = FLOW.alpha_bar(timestep).to(x)
        return self.tilt.score(x, alpha_bar) - self.prior.score(x, alpha_bar)


def flow_model(
    prior: GaussianMixture, sampler: str, network: nn.Module | None = None, steps: int = STEPS
) -> MixtureModel:
    variance = "analytic" if sampler == "memoryless" else "posterior"
    process = exact_process(prior.standardized(), steps, variance, "flow", sampler)
    return MixtureModel(prior, process, network or Zero(), PassCounter(), FLOW)


def times(steps: int) -> Tensor:
    """S by k: evenly spaced from the least that is trained, and 0 at the image."""
    return torch.cat(
        [torch.zeros(1, dtype=torch.float64), torch.linspace(1e-3, 1, steps, dtype=torch.float64)]
    )


# --- the reference --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, STEPS - 1, STEPS])
def test_the_velocity_is_the_mixtures_by_quadrature(k: int) -> None:
    """E[epsilon - x_0 | x_s] for x_s = (1 - s) x_0 + s epsilon, over a grid of x_0."""
    model, s = flow_model(LINE, "euler"), float(times(STEPS)[k])
    mean, second = 1.65, 0.5 * 1.2 + 0.2 * 4.6 + 0.3 * 6.3
    mean = 0.5 * -1.0 + 0.2 * 2.0 + 0.3 * 2.5
    scale = math.sqrt(second - mean**2)
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    log_prior = LINE.log_prob((scale * grid + mean)[:, None])
    x_s = torch.tensor([-1.3, -0.2, 0.4, 1.1], dtype=torch.float64)
    likelihood = -0.5 * (x_s[:, None] - (1 - s) * grid).square() / s**2
    clean = (log_prior + likelihood).softmax(1) @ grid
    expected = (x_s - (1 - s) * clean) / s - clean
    state = (x_s / math.hypot(1 - s, s)).reshape(-1, 1, 1, 1)
    with model.reference():
        found = model.predict(state, torch.full((4,), k), Condition())
    torch.testing.assert_close(found.x0_hat.flatten(), clean, rtol=1e-4, atol=1e-4)
    velocity = (found.epsilon - found.x0_hat).flatten()
    torch.testing.assert_close(velocity, expected, rtol=2e-3, atol=2e-3 / s)


@pytest.mark.parametrize("alpha_bar", [1.0, 0.99, 0.4, 1e-5])
def test_the_posterior_mean_is_tweedies(alpha_bar: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 2.0 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    expected = (x + (1 - alpha_bar) * PLANE.score(x, alpha_bar)) / alpha_bar**0.5
    torch.testing.assert_close(PLANE.posterior_mean(x, alpha_bar), expected, rtol=1e-9, atol=1e-9)
    at_noise = PLANE.posterior_mean(x, 0.0)
    torch.testing.assert_close(at_noise, PLANE.mean.expand_as(x))


def test_the_levels_are_evenly_spaced_from_noise_to_image() -> None:
    for sampler in PATHS["flow"].samplers:
        process = bare_process(STEPS, "flow", sampler)
        s = times(STEPS)
        torch.testing.assert_close(process.timestep.double(), TIMESTEPS * s, rtol=1e-6, atol=1e-3)
        expected = (1 - s).square() / ((1 - s).square() + s.square())
        torch.testing.assert_close(process.alpha_bar.double(), expected, rtol=1e-5, atol=1e-7)
        assert bool((process.sigma[1:] > 0).all()) == (sampler != "euler")


def test_the_flow_grpo_step_is_the_published_one() -> None:
    """Equation 9 of arXiv 2505.05470, by x_s itself, with its own rule where s is 1."""
    model, s = flow_model(PLANE, "flow-grpo"), times(STEPS)
    generator = torch.Generator().manual_seed(0)
    for k in range(2, STEPS + 1):
        here, after = s[k], s[k - 1]
        x_s = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        state = (x_s / math.hypot(1 - here, here))[:, None, None]
        levels = torch.full((3,), k)
        with model.reference():
            prediction = model.predict(state, levels, Condition())
        v = (prediction.epsilon - prediction.x0_hat)[:, 0, 0]
        noise = 0.7 * (here / (1 - (after if here == 1 else here))).sqrt()
        drift = v + noise**2 / (2 * here) * (x_s + (1 - here) * v)
        unit = math.hypot(1 - after, after)
        found = kernel_mean(model.process, state, prediction, levels)[:, 0, 0] * unit
        torch.testing.assert_close(found, x_s + drift * (after - here), rtol=1e-4, atol=1e-5)
        deviation = float(model.process.sigma[k]) * unit
        assert deviation == pytest.approx(float(noise * (here - after).sqrt()), rel=1e-4)


def test_networks_are_finite_and_can_move_at_pure_noise() -> None:
    torch.manual_seed(0)
    network = ValueNetwork(1, 8, 1, inputs=1, path=FLOW)
    nn.init.normal_(network.last.weight)
    model = flow_model(LINE, "memoryless", network)
    x = torch.randn(5, 1, 1, 1)
    with torch.no_grad():
        policy = model.predict(x, torch.full((5,), STEPS), Condition())
        with model.reference():
            reference = model.predict(x, torch.full((5,), STEPS), Condition())
    change = (policy.x0_hat - reference.x0_hat).abs()
    assert policy.x0_hat.isfinite().all()
    assert 1e-2 < change.mean() < 10
    score = VectorFlowScore(1, 8, 1, PassCounter(), FLOW)
    assert score(x, torch.full((5,), 1000.0), Condition()).eq(0).all()


# --- what each noise makes of the tilt ------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["memoryless", "euler", "flow-grpo"])
def test_the_exact_score_of_the_tilt_samples_it_by_every_noise(sampler: str) -> None:
    """All have the marginals of one process: a policy that has them may be sampled by any."""
    problem = Problem(LINE, LinearReward(DIRECTION), BETA)
    assert isinstance(problem.target, GaussianMixture)
    means = (problem.target.means - LINE.mean) / LINE.scale
    tilt = GaussianMixture(
        means, problem.target.covariances / LINE.scale**2, problem.target.weights
    )
    network = Tilted(LINE.standardized(), tilt)
    samples = sample_policy(flow_model(LINE, sampler, network, steps=100), 4000, seed=1)
    error = 4 * float(problem.target.covariance[0, 0].sqrt()) / 4000**0.5
    assert abs(samples.mean() - problem.target.mean) < error + 0.02


@pytest.mark.parametrize(
    ("sampler", "forgets"), [("memoryless", True), ("flow-grpo", False), ("euler", False)]
)
def test_only_memoryless_noise_forgets_where_it_began(sampler: str, forgets: bool) -> None:
    """Correlation of x_K with the image, for a unit normal, over many steps."""
    normal = GaussianMixture([[0.0]], [[[1.0]]])
    model = flow_model(normal, sampler, steps=200)
    found = model.sample([""] * 4000, torch.Generator().manual_seed(0), keep_states=True)
    assert found.states is not None
    ends = torch.stack([found.states[-1].flatten(), found.states[0].flatten()])
    correlation = float(torch.corrcoef(ends)[0, 1])
    assert (abs(correlation) < 0.06) == forgets


# --- problems, studies, and what does not fit -----------------------------------------------------


def test_a_problem_says_how_it_is_sampled() -> None:
    problem = Problem(LINE, LinearReward(DIRECTION), BETA, steps=4, path="flow", sampler="euler")
    assert vars(problem.sampling) == {"path": "flow", "sampler": "euler", "variance": "posterior"}
    assert problem.process.sigma.eq(0).all()
    settings = LabSettings(width=8, layers=0)
    row = evaluate(problem, "vgg-flow", 1, 8, n=100, settings=settings).row()
    assert (row["path"], row["sampler"], row["variance"]) == ("flow", "euler", "posterior")
    default = Problem(LINE, LinearReward(DIRECTION), BETA, path="flow").sampling
    assert (default.sampler, default.variance) == ("memoryless", "analytic")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"path": "flaw"}, r"^path: no process 'flaw'; did you mean flow\?$"),
        ({"path": "flow", "sampler": "ddim"}, r"^sampler: flow has no sampler 'ddim'; "),
        ({"sampler": "flow-grpo"}, r"^sampler: diffusion has no sampler 'flow-grpo'; "),
        ({"sampler": "euler", "variance": "analytic"}, r"^variance: euler's steps .*leave it out$"),
    ],
)
def test_names_that_are_none_are_refused_in_one_line(given: dict[str, str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Problem(LINE, LinearReward(DIRECTION), BETA, **given)


def test_a_study_refuses_a_method_that_the_noise_does_not_suit(tmp_path: Path) -> None:
    flow = {"process": "flow", "out": tmp_path}
    with pytest.raises(UserError, match=r"^sampler\.name: vgg-flow controls the ODE"):
        LabStudy(("ring",), ("vgg-flow",), **flow)
    with pytest.raises(UserError, match=r"^method\.step: the exact step needs kernels"):
        LabStudy(("ring",), ("residual-nabla-db",), sampler="flow-grpo", **flow)
    with pytest.raises(UserError, match=r"^--sampler: flow has no sampler 'ddim'"):
        LabStudy.named([], [], process="flow", sampler="ddim", out=tmp_path)


@pytest.mark.parametrize("sampler", ["memoryless", "flow-grpo", "euler"])
def test_all_methods_are_those_that_the_noise_suits(tmp_path: Path, sampler: str) -> None:
    study = LabStudy.named([], ["all"], tmp_path, process="flow", sampler=sampler)
    process = bare_process(study.steps, "flow", sampler)
    left = CONTENDERS.keys() - set(study.methods)
    assert "diffusion-nft" in study.methods
    assert ("vgg-flow" in left) == (sampler != "euler")
    for name in left:
        with pytest.raises(UserError):
            fits(CONTENDERS[name], process)
    named = LabStudy.named([], [], tmp_path, process="flow", sampler=sampler)
    assert set(named.methods) <= set(study.methods)
