"""Forward-looking estimates, with and without flow score, against finite differences."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from nablaflow.diffusion import build_process
from nablaflow.errors import UserError
from nablaflow.estimators import ForwardLooking, ForwardLookingFlow, NStep, TemporalDifference
from nablaflow.estimators.forward_looking import Gamma, Predictor
from tests.support.numeric import finite_difference
from tests.support.paths import Bent, bent_problem, rows_of, state
from tests.support.schedules import STABLE_DIFFUSION

KEEP = [[5, 1], [2, 4, 4], [3, 5, 1]]
GAMMAS: list[Gamma] = ["alpha_bar", "sqrt_alpha_bar", "one", 0.7, [1.0, 0.9, 0.5, 0.3, 0.0, 0.2]]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-6, atol=1e-7)


def gamma_by_hand(bent: Bent, gamma: Gamma, k: int) -> float:
    if k == 0:
        return 1.0
    if isinstance(gamma, list):
        return gamma[k]
    if isinstance(gamma, float):
        return gamma
    power = {"alpha_bar": 1.0, "sqrt_alpha_bar": 0.5, "one": 0.0}[gamma]
    return float(bent.model.process.alpha_bar[k]) ** power


@pytest.mark.parametrize("predictor", ["policy", "reference"])
@pytest.mark.parametrize("gamma", GAMMAS, ids=str)
def test_it_is_the_published_formula(gamma: Gamma, predictor: Predictor) -> None:
    bent = bent_problem()
    path = bent.random_path(KEEP)
    estimator = ForwardLooking(gamma=gamma, predictor=predictor)
    found = estimator.estimate(path, bent.networks, bent.beta)
    assert found.flow is None
    assert not found.target.requires_grad
    for index, row, k, prompt in rows_of(path):

        def ahead(x: Tensor, k: int = k, prompt: str = prompt) -> Tensor:
            if k > 1:
                x, _ = bent.prediction(x, k - 1, prompt, policy=predictor == "policy")
            return bent.beta * gamma_by_hand(bent, gamma, k - 1) * bent.reward(x, prompt)

        close(found.target[index].flatten(), finite_difference(ahead, state(path, k - 1, row)))


@pytest.mark.parametrize("predictor", ["policy", "reference"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "sde-dpmsolver++"])
def test_with_flow_score_it_is_the_residual_conditions(sampler: str, predictor: Predictor) -> None:
    """Following by the average network at x_{k-1}; flow by the log ratio of the two kernels."""
    bent = bent_problem(sampler)
    path, process = bent.random_path(KEEP), bent.model.process
    found = ForwardLookingFlow(predictor=predictor).estimate(path, bent.networks, bent.beta)
    assert found.flow is not None
    by_policy = predictor == "policy"
    for index, row, k, prompt in rows_of(path):
        here, following = state(path, k, row), state(path, k - 1, row)
        close(found.target[index], bent.bootstrap(following, k - 1, prompt, policy=by_policy))
        sigma = float(process.sigma[k])

        def log_ratio(
            x: Tensor,
            k: int = k,
            prompt: str = prompt,
            x_next: Tensor = following,
            sigma: float = sigma,
        ) -> Tensor:
            policy, reference = (bent.mean(x, k, prompt, policy=who) for who in (True, False))
            ratio = Normal(policy, sigma).log_prob(x_next)
            return (ratio - Normal(reference, sigma).log_prob(x_next)).sum()

        reverse = finite_difference(log_ratio, here)
        expected = -reverse - bent.looked(here, k, prompt, policy=by_policy)
        # The log densities are large where the floored sigma is small, and so is their rounding.
        torch.testing.assert_close(
            found.flow[index].flatten(), expected, rtol=1e-5, atol=1e-6 / sigma**2
        )


def test_the_flow_network_in_a_target_is_the_average_one() -> None:
    bent = bent_problem()
    path = bent.random_path(KEEP)
    estimators = [ForwardLookingFlow(), TemporalDifference(td_lambda=0.5), NStep(n=1)]
    flow, target = bent.networks.flow, bent.networks.flow_target
    assert flow is not None
    assert target is not None
    before = [part.estimate(path, bent.networks, bent.beta).target for part in estimators]
    for parameter in flow.parameters():
        parameter.data.mul_(2.0)
    for part, first in zip(estimators, before, strict=True):
        assert torch.equal(part.estimate(path, bent.networks, bent.beta).target, first)
    for parameter in target.parameters():
        parameter.data.mul_(2.0)
    for part, first in zip(estimators, before, strict=True):
        moved = part.estimate(path, bent.networks, bent.beta).target
        assert (moved - first).abs().max() > 1e-3
    networks = (flow, target, bent.model.network)
    assert all(parameter.grad is None for part in networks for parameter in part.parameters())


@pytest.mark.parametrize("gamma", [[1.0, 0.5], [0.5, *[1.0] * 6], [1.0, *[-1.0] * 6]], ids=str)
def test_a_gamma_that_does_not_fit_the_sampler_is_refused(gamma: list[float]) -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 6, 1.0, sigma_floor=0.01)
    for kind in (ForwardLooking, ForwardLookingFlow, TemporalDifference, NStep):
        with pytest.raises(UserError, match=r"^method\.gamma: [^\n]*$"):
            kind(gamma=gamma).check(process)
        kind(gamma=[1.0, *[0.5] * 6]).check(process)
