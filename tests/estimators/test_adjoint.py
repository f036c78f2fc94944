"""The lean adjoint against Jacobians by hand, one graph of the chain and finite differences."""

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import build_process
from nablaflow.errors import UserError
from nablaflow.estimators import Adjoint, Networks, Path
from nablaflow.rewards import NamedReward
from tests.support.chain import kernel_of
from tests.support.gaussian import GaussianModel, SmallNetwork
from tests.support.numeric import finite_difference
from tests.support.paths import (
    Bent,
    CountingModel,
    Nothing,
    bent_gradient,
    bent_problem,
    bent_reward,
    path_of,
    random_states,
    rows_of,
    state,
)
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.7
STEPS = 7
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
SAMPLERS = [("ddim", 1.0), ("ddim", 0.4), ("ddpm", 1.0), ("sde-dpmsolver++", 1.0)]
KEEP = [[1, 3, 7], [4, 4, 2], [7, 7, 6], [1, 1, 1], [5, 2, 3]]
PROMPTS = ["one", "two", "three", "two", "one"]
NEAR = {"rtol": 1e-6, "atol": 1e-7}


def gaussian(sampler: tuple[str, float] = ("ddim", 1.0)) -> GaussianModel:
    name, eta = sampler
    process = build_process(STABLE_DIFFUSION, name, STEPS, eta, sigma_floor=0.01)
    return GaussianModel(process, MEAN, COVARIANCE, SmallNetwork(STEPS, 2, seed=1))


def gaussian_path() -> Path:
    return path_of(random_states(STEPS, len(KEEP), 2, seed=4), KEEP, prompts=PROMPTS)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: f"{sampler[0]}-{sampler[1]}")
def test_on_a_gaussian_it_is_the_product_of_the_kernels_jacobians(
    sampler: tuple[str, float],
) -> None:
    """Every wanted level, several to a trajectory, some of them twice, and of its own prompt."""
    model, path = gaussian(sampler), gaussian_path()
    networks = Networks(model, NamedReward("bent", bent_reward))
    found = Adjoint().estimate(path, networks, BETA)
    assert found.flow is None
    assert not found.target.requires_grad
    slopes = [kernel_of(model, max(k, 1)).slope for k in range(STEPS + 1)]
    for index, row, k, prompt in rows_of(path):
        expected = BETA * bent_gradient(path.x0[row : row + 1], [prompt]).flatten()
        for level in range(1, k):
            expected = slopes[level].T @ expected
        torch.testing.assert_close(found.target[index].flatten(), expected, **NEAR)


@pytest.fixture(scope="module", params=SAMPLERS[1:], ids=lambda sampler: sampler[0])
def bent(request: pytest.FixtureRequest) -> Bent:
    return bent_problem(*request.param)


BENT_KEEP = [[5, 1], [2, 4, 4], [3, 5]]


def test_on_a_bent_reference_it_is_the_product_of_the_jacobians_at_the_stored_states(
    bent: Bent,
) -> None:
    path = bent.random_path(BENT_KEEP)
    found = Adjoint().estimate(path, bent.networks, bent.beta).target
    for index, row, k, prompt in rows_of(path):
        expected = bent.beta * bent_gradient(path.x0[row : row + 1], [prompt]).flatten()
        for level in range(1, k):
            expected = bent.jacobian(state(path, level, row), level, prompt).T @ expected
        torch.testing.assert_close(found[index].flatten(), expected, **NEAR)


def chained_reward(bent: Bent, path: Path, row: int, k: int, x: Tensor) -> Tensor:
    """beta r(x_0) as a function of x_k, with each kernel's noise held as the states tell it."""
    prompt = path.prompts[row]
    for level in range(k, 0, -1):
        stored = state(path, level, row)
        noise = state(path, level - 1, row) - bent.mean(stored, level, prompt).detach()
        x = bent.mean(x, level, prompt) + noise
    return bent.beta * bent.reward(x, prompt)


def test_it_is_the_gradient_through_one_graph_of_the_chain(bent: Bent) -> None:
    path = bent.random_path(BENT_KEEP, seed=1)
    found = Adjoint().estimate(path, bent.networks, bent.beta).target
    for index, row, k, _ in rows_of(path):
        x = state(path, k - 1, row).clone().requires_grad_()
        (expected,) = torch.autograd.grad(chained_reward(bent, path, row, k - 1, x), x)
        torch.testing.assert_close(found[index].flatten(), expected.flatten(), **NEAR)


def test_it_is_what_finite_differences_say() -> None:
    bent = bent_problem()
    path = bent.random_path([[5], [4]], seed=2)
    found = Adjoint().estimate(path, bent.networks, bent.beta).target
    for index, row, k, _ in rows_of(path):

        def total(x: Tensor, row: int = row, k: int = k) -> Tensor:
            return chained_reward(bent, path, row, k - 1, x)

        expected = finite_difference(total, state(path, k - 1, row))
        torch.testing.assert_close(found[index].flatten(), expected, rtol=1e-5, atol=1e-6)


def test_only_the_reference_is_differentiated_and_the_policy_is_active_after() -> None:
    bent = bent_problem()
    path = bent.random_path(BENT_KEEP)
    first = Adjoint().estimate(path, bent.networks, bent.beta).target
    for parameter in bent.model.network.parameters():
        parameter.data.mul_(3.0)
    assert torch.equal(Adjoint().estimate(path, bent.networks, bent.beta).target, first)
    assert all(parameter.grad is None for parameter in bent.model.network.parameters())
    x, k = path.transitions.x, path.transitions.k
    condition = path.batch().condition
    active = bent.model.predict(x, k, condition).epsilon
    with bent.model.reference():
        assert (bent.model.predict(x, k, condition).epsilon - active).abs().max() > 1e-3


@pytest.mark.parametrize("stride", [1, 3])
def test_a_transition_has_the_same_estimate_whatever_else_is_kept_above_it(stride: int) -> None:
    bent = bent_problem()
    alone = bent.random_path([[2], [2], [2]])
    among = bent.random_path([[2, 5], [4, 2], [2, 2, 3]])
    first, second = (
        Adjoint(stride=stride).estimate(path, bent.networks, bent.beta).target
        for path in (alone, among)
    )
    for index, row, _, _ in rows_of(alone):
        same = [i for i, other, k, _ in rows_of(among) if other == row and k == 2]
        for other in same:
            torch.testing.assert_close(second[other], first[index])


def jumps(wanted: list[int], stride: int) -> dict[int, list[tuple[int, int]]]:
    """The (from, to) on the way to each wanted level: no longer than ``stride``, none left out."""
    way: list[tuple[int, int]] = []
    reached, level = {0: list(way)}, 0
    for stop in sorted(set(wanted)):
        while level < stop:
            to = min(level + stride, stop)
            way.append((level, to))
            level = to
        reached[stop] = list(way)
    return reached


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: f"{sampler[0]}-{sampler[1]}")
def test_strides_on_a_gaussian_are_conditional_means_of_the_noising(
    sampler: tuple[str, float], stride: int
) -> None:
    """d E[x_j | x_k] / d x_k = sqrt(alpha_bar_k / alpha_bar_j) S_j S_k^-1 with S the marginals'
    covariances; a jump of one step is the sampler's own.
    """
    model, path = gaussian(sampler), gaussian_path()
    networks = Networks(model, NamedReward("bent", bent_reward))
    found = Adjoint(stride=stride).estimate(path, networks, BETA).target
    alpha_bar = model.process.alpha_bar.double()
    identity = torch.eye(2, dtype=torch.float64)
    marginals = [a * COVARIANCE + (1 - a) * identity for a in alpha_bar]
    for index, row, k, prompt in rows_of(path):
        expected = BETA * bent_gradient(path.x0[row : row + 1], [prompt]).flatten()
        for j, to in jumps([kept - 1 for kept in KEEP[row]], stride)[k - 1]:
            slope = (alpha_bar[to] / alpha_bar[j]).sqrt() * marginals[j] @ marginals[to].inverse()
            if to - j == 1:
                slope = kernel_of(model, to).slope
            expected = slope.T @ expected
        torch.testing.assert_close(found[index].flatten(), expected, **NEAR)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_each_trajectory_pays_for_its_own_jumps(stride: int) -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)
    model = CountingModel(process, MEAN, COVARIANCE, Nothing())
    networks = Networks(model, NamedReward("bent", bent_reward))
    Adjoint(stride=stride).estimate(gaussian_path(), networks, BETA)
    wanted = [[k - 1 for k in steps] for steps in KEEP]
    expected = [to for levels in wanted for _, to in jumps(levels, stride)[max(levels)]]
    assert sorted(k for call in model.calls for k in call) == sorted(expected)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_estimate_is_linear_in_the_tilt(size: float) -> None:
    bent = bent_problem()
    path = bent.random_path(BENT_KEEP)
    one, other = (Adjoint().estimate(path, bent.networks, beta).target for beta in (1.0, size))
    torch.testing.assert_close(other / size, one, rtol=1e-12, atol=0.0)


def test_without_a_tilt_it_is_zero() -> None:
    bent = bent_problem()
    found = Adjoint().estimate(bent.random_path(BENT_KEEP), bent.networks, 0.0).target
    assert torch.equal(found, torch.zeros_like(found))


def test_a_reward_without_a_finite_gradient_is_named() -> None:
    def broken(images: Tensor, prompts: list[str]) -> Tensor:
        return (0.0 * images[:, 0]).sqrt().flatten(1).sum(1)

    networks = Networks(gaussian(), NamedReward("broken", broken))
    with pytest.raises(UserError, match="the gradient of 'broken' is NaN or infinite for 5 of 5"):
        Adjoint().estimate(gaussian_path(), networks, BETA)


def test_a_network_that_makes_it_infinite_is_a_fault() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)
    model = GaussianModel(process, MEAN, COVARIANCE, Nothing(), bend=float("nan"))
    networks = Networks(model, NamedReward("bent", bent_reward))
    with pytest.raises(FloatingPointError, match="the adjoint, taken through the network"):
        Adjoint().estimate(gaussian_path(), networks, BETA)


@pytest.mark.parametrize(
    ("sampler", "stride", "refused"), [(0, 3, False), (1, 1, False), (1, 3, True)]
)
def test_a_jump_is_refused_where_it_is_not_the_product_of_its_steps(
    sampler: int, stride: int, refused: bool
) -> None:
    """By a unit normal the steps' Jacobians over some levels, beside the jump's."""
    name, eta = SAMPLERS[sampler]
    process = build_process(STABLE_DIFFUSION, name, STEPS, eta, sigma_floor=0.01)
    zero, one = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    model = GaussianModel(process, zero, one, Nothing())
    steps = torch.stack([kernel_of(model, k).slope[0, 0] for k in (3, 4, 5)]).prod()
    jump = (process.alpha_bar[5] / process.alpha_bar[2]).sqrt().double()
    assert torch.isclose(steps, jump, rtol=1e-3) != (eta < 1)
    if refused:
        with pytest.raises(UserError, match=r"^stride: .*set stride=1 .*sampler\.eta=1"):
            Adjoint(stride=stride).check(process)
    else:
        Adjoint(stride=stride).check(process)
