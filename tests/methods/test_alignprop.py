"""AlignProp: the draw of k, and the expectation of the gradient over it."""

import pytest
import torch

from nablaflow.diffusion import build_process
from nablaflow.errors import UserError
from nablaflow.estimators import Networks
from nablaflow.methods import AlignProp, Draft
from tests.support.chain import Quadratic, solve
from tests.support.gaussian import GaussianModel, MeanShift, linear_reward
from tests.support.paths import bent_problem, path_of, random_states
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.25
STEPS = 5
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
PROCESS = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)


@pytest.mark.parametrize(("least", "most"), [(1, None), (2, 4), (3, 3)])
def test_k_is_uniform(least: int, most: int | None) -> None:
    n = 4000
    method = AlignProp(beta=1.0, least=least, most=most)
    drawn = method.draw(n, PROCESS, 1, torch.Generator().manual_seed(0))
    assert drawn.shape == (n, 1)
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == list(range(least, (most or STEPS) + 1))
    share = 1 / len(values)
    assert (counts / n - share).abs().max() < 4 * (share * (1 - share) / n) ** 0.5 + 1e-9
    again = method.draw(n, PROCESS, 4, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_over_k_the_gradient_is_the_mean_of_drafts() -> None:
    """One trajectory five times, each k once, in one batch; and DRaFT-k for each k by itself."""
    bent = bent_problem(steps=STEPS)
    states = random_states(STEPS, 1, 2, seed=3).expand(-1, STEPS, -1, -1, -1)
    prompts = ["two"] * STEPS

    def gradient(method: AlignProp | Draft, starts: list[int]) -> torch.Tensor:
        n = len(starts)
        path = path_of(
            states[:, :n], [[k] for k in starts], bent.model.condition(prompts[:n]), prompts[:n]
        )
        bent.model.network.zero_grad()
        method.losses(path.batch(with_states=True), bent.networks).total.mean().backward()
        return bent.model.network.second.grad.clone()

    found = gradient(AlignProp(beta=BETA), list(range(1, STEPS + 1)))
    each = [gradient(Draft(beta=BETA, k=k), [k]) for k in range(1, STEPS + 1)]
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-6, atol=1e-9)
    assert not torch.allclose(each[0], each[-1])


def test_a_step_counts_as_often_as_it_is_reached() -> None:
    """In closed form: E_k d loss / d shift_j = -(K - j + 1) / K grad V_{j-1}."""
    model = GaussianModel(PROCESS, MEAN, COVARIANCE, MeanShift(PROCESS, 2))
    chain = solve(model, Quadratic(torch.zeros(2, 2, dtype=torch.float64), DIRECTION), BETA)
    batch = path_of(
        random_states(STEPS, STEPS, 2, seed=4), [[k] for k in range(1, STEPS + 1)]
    ).batch(with_states=True)
    losses = AlignProp(beta=BETA).losses(batch, Networks(model, linear_reward(DIRECTION)))
    losses.total.mean().backward()
    for j in range(1, STEPS + 1):
        wanted = -(STEPS - j + 1) / STEPS * chain.values[j - 1].offset
        torch.testing.assert_close(model.network.shift.grad[j], wanted, rtol=1e-5, atol=1e-8)
    assert losses.metrics["replayed_steps"].mean() == (STEPS + 1) / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most": 6}, r"method\.most: 6 of sampler\.steps=5; use fewer, or null for all"),
        ({"least": 4, "most": 3}, r"method\.least: 4 is more than method\.most, 3; use less"),
        ({"least": 6}, r"method\.least: 6 is more than method\.most, 5; use less"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{message}$"):
        AlignProp(beta=1.0, **settings).check(PROCESS, flow=False, on_policy=True)
    AlignProp(beta=1.0, least=2, most=5).check(PROCESS, flow=False, on_policy=True)
