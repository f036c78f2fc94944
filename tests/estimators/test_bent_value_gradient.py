"""What the estimators say on average, against grad V of a bent model, found by quadrature.

On the line V_k(x) = log E_ref[exp V_{k-1} | x] is a sum over a grid, and paths of the tilt are
drawn on that grid.
"""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from nablaflow.diffusion import build_process
from nablaflow.estimators import (
    Adjoint,
    Estimator,
    Networks,
    NStep,
    Path,
    TemporalDifference,
    Terminal,
)
from nablaflow.models import Condition, FlowScore
from nablaflow.rewards import NamedReward
from tests.support.gaussian import GaussianModel, level_of
from tests.support.numeric import finite_difference
from tests.support.paths import Nothing, path_of, random_states
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.25
STEPS = 4
PATHS = 4000
GRID = torch.arange(-8.0, 8.0, 0.01, dtype=torch.float64)


def bumpy(images: Tensor, prompts: list[str]) -> Tensor:
    x = images[:, 0].flatten(1).sum(1)
    return torch.sin(2.0 * x) + 0.4 * x


class Line:
    """A bent reference in one dimension, with log E_ref exp(beta r) at every step on a grid."""

    def __init__(self) -> None:
        process = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.1)
        one = torch.ones(1, dtype=torch.float64)
        self.model = GaussianModel(process, 0.3 * one, 0.7 * one[:, None], Nothing(), bend=0.4)
        self.values = [BETA * (torch.sin(2.0 * GRID) + 0.4 * GRID)]
        for k in range(1, STEPS + 1):
            self.values.append(self.value(GRID, k))

    def mean(self, x: Tensor, k: int) -> Tensor:
        """Of the reference's kernel, written out."""
        process = self.model.process
        alpha_bar, timestep = float(process.alpha_bar[k]), process.timestep[k].expand(len(x))
        with self.model.reference():
            epsilon = self.model.forward(x.reshape(-1, 1, 1, 1), timestep, Condition()).flatten()
        x0_hat = (x - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
        return float(process.from_x0[k]) * x0_hat + float(process.from_epsilon[k]) * epsilon

    def log_joint(self, x: Tensor, k: int) -> Tensor:
        """log p_ref(x_{k-1} | x_k = x) + V_{k-1}(x_{k-1}) on the grid, (n, grid)."""
        sigma = float(self.model.process.sigma[k])
        density = torch.distributions.Normal(self.mean(x, k)[:, None], sigma).log_prob(GRID)
        return density + self.values[k - 1]

    def value(self, x: Tensor, k: int) -> Tensor:
        return self.log_joint(x, k).logsumexp(1) + torch.tensor(0.01).double().log()

    def gradient(self, x: Tensor, k: int) -> Tensor:
        """V_k' by autograd through the sum, at any points."""
        if k == 0:
            return BETA * (2.0 * torch.cos(2.0 * x) + 0.4)
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.value(leaf, k).sum(), leaf)
        return found

    def path(self, x: float, k: int, seed: int) -> Path:
        """Paths of the tilt from one x_{k-1}; the transition at k is kept."""
        generator = torch.Generator().manual_seed(seed)
        states = [torch.full((PATHS,), x, dtype=torch.float64)]
        for level in range(k - 1, 0, -1):
            here, which = states[-1].unique(return_inverse=True)
            chances = self.log_joint(here, level).softmax(1).cumsum(1)
            drawn = torch.rand(PATHS, 1, generator=generator, dtype=torch.float64)
            index = torch.searchsorted(chances[which], drawn).clamp_max(len(GRID) - 1)
            states.append(GRID[index[:, 0]])
        above = random_states(STEPS, PATHS, 1, seed)[: STEPS + 1 - k]
        below = torch.stack(states[::-1]).reshape(k, PATHS, 1, 1, 1)
        return path_of(torch.cat([below, above]), [[k]] * PATHS)


class ExactFlow(FlowScore):
    """V_k' of the line as a flow score: with gamma = 0 it is all of the value gradient."""

    def __init__(self, line: Line) -> None:
        nn.Module.__init__(self)
        self.line = line

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        k, flat, found = level_of(self.line.model.process, timestep), x.flatten(), x.clone()
        for level in k.unique().tolist():
            here = k == level
            points, which = flat[here].unique(return_inverse=True)
            found[here] = self.line.gradient(points, level)[which].reshape(-1, 1, 1, 1)
        return found


@cache
def line() -> Line:
    return Line()


@pytest.mark.parametrize("k", [2, STEPS])
def test_the_grid_is_fine_enough(k: int) -> None:
    """V_k' = J_k E_tilt[V_{k-1}'], which holds by parts of the integral but not of a coarse sum."""
    x = torch.tensor([-1.0, 0.2, 1.3], dtype=torch.float64)
    chances = line().log_joint(x, k).softmax(1)
    slope = finite_difference(lambda at: line().mean(at, k).sum(), x)
    expected = slope * (chances @ line().gradient(GRID, k - 1))
    torch.testing.assert_close(line().gradient(x, k), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("x", [-0.8, 0.6])
@pytest.mark.parametrize("k", [2, 3, STEPS])
@pytest.mark.parametrize(
    "estimator",
    [Adjoint(), TemporalDifference(td_lambda=0.6, gamma=0.0), NStep(n=1, gamma=0.0)],
    ids=lambda estimator: estimator.name,
)
def test_the_mean_over_paths_of_the_tilt_is_the_value_gradient(
    estimator: Estimator, k: int, x: float
) -> None:
    """Within four standard errors, where a terminal estimate is ten and more away from k = 3 on."""
    flow = ExactFlow(line())
    networks = Networks(line().model, NamedReward("bumpy", bumpy), flow, flow)
    path = line().path(x, k, seed=k)
    found = estimator.estimate(path, networks, BETA).target.flatten()
    truth = float(line().gradient(torch.tensor([x], dtype=torch.float64), k - 1))
    standard_error = float(found.std()) / PATHS**0.5
    assert abs(float(found.mean()) - truth) < 4 * standard_error + 1e-9
    if isinstance(estimator, Adjoint):
        assert 0 < standard_error < 0.05
        crude = Terminal().estimate(path, networks, BETA).target.flatten()
        error = abs(float(crude.mean()) - truth)
        assert k == 2 or error > 10 * float(crude.std()) / PATHS**0.5
