"""The exact step: no loss at the tilt of a Gaussian, where grad V_k is known, at few steps too."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import build_process, kernel_mean, mean_per_score, sample_trajectories
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, Path, look_ahead
from nablaflow.methods import (
    AdjointMatching,
    Method,
    NablaTD,
    ResidualNablaDB,
    TerminalMatching,
    ValueMatching,
)
from nablaflow.models import Condition
from tests.support.balance import COVARIANCE, DIRECTION, MEAN
from tests.support.chain import x0_hat_of
from tests.support.gaussian import AffineFlow, GaussianModel, MeanShift, linear_reward
from tests.support.numeric import finite_difference
from tests.support.paths import training_batch
from tests.support.schedules import STABLE_DIFFUSION

BETA, GAMMA = 1.4, 0.4
N = 8


def value_gradient(model: GaussianModel, k: int) -> Tensor:
    """Of log E[exp(beta a.x_0) | x_k]: x_0 given x_k is normal, with a covariance that is fixed."""
    return BETA * x0_hat_of(model, k).slope.T @ DIRECTION


def aligned(sampler: str, steps: int) -> GaussianModel:
    """The tilt's own posterior means as kernels."""
    process = build_process(STABLE_DIFFUSION, sampler, steps, 1.0, sigma_floor=0.01)
    policy = MeanShift(process, 2)
    model = GaussianModel(process, MEAN, COVARIANCE, policy)
    for k in range(1, steps + 1):
        policy.shift.data[k] = mean_per_score(process)[k] * value_gradient(model, k)
    return model


def path_through(model: GaussianModel) -> Path:
    steps = torch.arange(1, model.process.steps + 1).expand(N, -1)
    found = sample_trajectories(
        lambda x, k: model.predict(x.double(), k, Condition()),
        model.process,
        model.state_shape,
        torch.Generator().manual_seed(0),
        model.device,
        steps,
        n=N,
        keep_states=True,
    )
    return Path(found.x0, found.states, Condition(), [""] * N, found.transitions)


METHODS: list[Method] = [
    ResidualNablaDB(beta=BETA, gamma="one"),
    ValueMatching(
        beta=BETA,
        step="exact",
        estimator={"name": "forward-looking", "gamma": "one", "predictor": "reference"},
    ),
    AdjointMatching(beta=BETA, step="exact"),
    AdjointMatching(beta=BETA, step="exact", stride=3),
    NablaTD(beta=BETA, step="exact", td_lambda=0.0, gamma=GAMMA),
    NablaTD(beta=BETA, step="exact", td_lambda=0.5, gamma=GAMMA),
]
IDS = ["residual", "forward-looking", "adjoint", "jump", "bootstrap", "traces"]


def flow_beside(model: GaussianModel) -> AffineFlow:
    """What ``GAMMA`` leaves of the value gradient for a flow score, exactly."""
    steps = range(1, model.process.steps + 1)
    left = torch.stack([(1.0 - GAMMA) * value_gradient(model, k) for k in steps])
    return AffineFlow(model.process, torch.cat([torch.zeros_like(left[:1]), left]))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "sde-dpmsolver++"])
@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_the_loss_is_zero_at_the_tilt(method: Method, steps: int, sampler: str) -> None:
    model = aligned(sampler, steps)
    assert loss_on(method, model) < 1e-5
    with torch.no_grad():
        model.network.shift.mul_(0.8)
    assert loss_on(method, model) > 1e-3  # a policy that is a fifth short is seen


def loss_on(method: Method, model: GaussianModel) -> float:
    """Largest over the transitions, relative to the target's own size in the same unit."""
    flow = flow_beside(model) if isinstance(method, NablaTD) else None
    networks = Networks(model, linear_reward(DIRECTION), flow=flow, flow_target=flow)
    method.check(model.process, flow=flow is not None, on_policy=True)
    path = path_through(model)
    path = Path(
        path.x0,
        path.states,
        path.condition,
        path.prompts,
        path.transitions,
        levels=method.value_step(model.process).level,
    )
    batch = training_batch(path, method.value_estimator(), networks, method.beta)
    losses = method.losses(batch, networks).total
    scale = method.value_step(model.process).scale[batch.transitions.k]
    levels, which = batch.transitions.k.unique(return_inverse=True)
    size = torch.stack([value_gradient(model, k).square().mean() for k in levels.tolist()])[which]
    inner = batch.transitions.k > 1  # at k = 1 the tables of float32 leave few digits
    return (losses / (scale * size))[inner].max().item()


def test_where_x0_hat_is_clamped_nothing_is_asked_and_nothing_moves() -> None:
    """A clamped value of x0_hat depends on no state, nor on the policy: 0 by finite differences."""
    model = aligned("ddpm", 5)
    model.process = replace(model.process, clip=0.4)
    x = torch.tensor([[3.0, -3.0], [0.1, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    k = torch.tensor([3, 3])
    strength = torch.full((6,), BETA)
    networks = Networks(model, linear_reward(DIRECTION))
    found = look_ahead(networks, x, k, Condition(), ["", ""], strength, "reference")

    def value(at: Tensor) -> Tensor:
        with model.reference():
            x0_hat = model.predict(at, k, Condition()).x0_hat
        return BETA * (x0_hat.flatten(1) @ DIRECTION).sum()

    torch.testing.assert_close(found, finite_difference(value, x), rtol=1e-5, atol=1e-7)
    assert not found[0].any()  # both values clamped
    assert found[1].all()
    shift = kernel_mean(model.process, x, model.predict(x, k, Condition()), k)
    with model.reference():
        shift = shift - kernel_mean(model.process, x, model.predict(x, k, Condition()), k)
    assert not shift[0].any()


@pytest.mark.parametrize("kind", [ResidualNablaDB, AdjointMatching, TerminalMatching])
def test_kernels_without_posterior_means_are_refused(kind: type[Method]) -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 5, 0.5, sigma_floor=0.01)
    with pytest.raises(UserError, match=r"sampler\.eta=1"):
        kind(beta=1.0, step="exact").check(process, flow=False, on_policy=True)


def test_the_exact_step_moves_the_whole_reference() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 5, 1.0, sigma_floor=0.01)
    with pytest.raises(UserError, match=r"method\.prior_strength: .*step=published"):
        ResidualNablaDB(beta=1.0, prior_strength=0.5).check(process, flow=False, on_policy=True)
