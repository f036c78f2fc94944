"""Guided sampling: against the closed form on a Gaussian, and finite differences elsewhere."""

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import build_process, sample_trajectories, value_step
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, gamma_table
from nablaflow.methods import GuidedSampling
from nablaflow.methods.guided_sampling import guided_mean
from nablaflow.models import Condition
from tests.support.chain import kernel_of, x0_hat_of
from tests.support.gaussian import GaussianModel, MeanShift, linear_reward
from tests.support.paths import bent_problem, random_states
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.25
STEPS = 6
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
SAMPLERS = [("ddim", 1.0), ("ddim", 0.4), ("ddpm", 1.0), ("sde-dpmsolver++", 1.0)]


def gaussian(sampler: str = "ddim", eta: float = 1.0) -> Networks:
    process = build_process(STABLE_DIFFUSION, sampler, STEPS, eta, sigma_floor=0.01)
    model = GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))
    model.network.shift.data += 3.0  # the policy's, which has no part in it
    return Networks(model, linear_reward(DIRECTION))


def reference_samples(networks: Networks, n: int, seed: int) -> Tensor:
    model = networks.model
    with model.reference():
        return sample_trajectories(
            lambda x, k: model.predict(x, k, Condition()),
            model.process,
            model.state_shape,
            torch.Generator().manual_seed(seed),
            model.device,
            n=n,
        ).x0


def guided_samples(method: GuidedSampling, networks: Networks, n: int, seed: int) -> Tensor:
    return method.sample(networks, [""] * n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: f"{sampler[0]}-{sampler[1]}")
@pytest.mark.parametrize("gamma", ["one", "alpha_bar", 0.3])
def test_on_a_gaussian_every_sample_is_moved_by_the_same_amount(
    sampler: tuple[str, float], gamma: str | float
) -> None:
    """d_{k-1} = J_k d_k + sigma_k^2 beta gamma_k S_k^T a, with the same noise and d_K = 0."""
    networks = gaussian(*sampler)
    model = networks.model
    assert isinstance(model, GaussianModel)
    moved = torch.zeros(2, dtype=torch.float64)
    for k in range(STEPS, 0, -1):
        trust = {
            "one": 1.0,
            "alpha_bar": float(model.process.alpha_bar[k]),
        }.get(str(gamma), gamma)
        value_gradient = BETA * float(trust) * x0_hat_of(model, k).slope.T @ DIRECTION
        variance = model.process.sigma[k].double().square()
        moved = kernel_of(model, k).slope @ moved + variance * value_gradient
    method = GuidedSampling(beta=BETA, gamma=gamma)
    found = guided_samples(method, networks, 5, seed=3) - reference_samples(networks, 5, seed=3)
    torch.testing.assert_close(found.flatten(1), moved.expand(5, 2), rtol=1e-4, atol=1e-5)


def test_more_steps_bring_it_to_the_tilt_of_a_gaussian() -> None:
    """The tilt by a linear reward is N(mean + beta S a, S); so far apart are the two means."""
    wanted = BETA * COVARIANCE @ DIRECTION
    errors = []
    for steps in (10, 40, 160):
        process = build_process(STABLE_DIFFUSION, "ddim", steps, 1.0, sigma_floor=0.01)
        networks = Networks(
            GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2)),
            linear_reward(DIRECTION),
        )
        moved = guided_samples(GuidedSampling(beta=BETA), networks, 1, seed=0)
        moved = moved - reference_samples(networks, 1, seed=0)
        errors.append(float((moved.flatten() - wanted).norm() / wanted.norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.1


def test_without_a_tilt_it_is_the_reference() -> None:
    networks = gaussian()
    found = guided_samples(GuidedSampling(beta=0.0), networks, 4, seed=1)
    torch.testing.assert_close(found, reference_samples(networks, 4, seed=1))
    assert not found.requires_grad


def test_the_moved_mean_by_finite_differences_each_row_with_its_own_prompt() -> None:
    bent = bent_problem()
    process = bent.model.process
    prompts, k = ["two", "one", "three"], torch.tensor([4, 1, 2])
    x = random_states(0, 3, 2, seed=2)[0]
    strength = bent.beta * gamma_table("alpha_bar", process)
    condition = bent.model.condition(prompts)
    scale = value_step("published", process).scale
    found = guided_mean(bent.networks, x, k, condition, prompts, strength, scale)
    for row, prompt in enumerate(prompts):
        at, step = x[row].flatten(), int(k[row])
        variance = float(process.sigma[step]) ** 2
        wanted = bent.mean(at, step, prompt) + variance * bent.looked(at, step, prompt)
        torch.testing.assert_close(found[row].flatten(), wanted, rtol=1e-5, atol=1e-7)


def test_a_gamma_that_does_not_fit_the_sampler_is_refused_in_one_line() -> None:
    method = GuidedSampling(beta=1.0, gamma=[1.0, 0.5])
    with pytest.raises(UserError, match=r"^method\.gamma: 2 values for 7 levels[^\n]*$"):
        method.check(gaussian().model.process)
