"""Against the scores of two normals: that of a quadratic tilt, noised, and that of the reference.

As all is affine, both estimates' expectation given x_k is their value at E[x_0 | x_k] under the
tilt, so that what is Monte Carlo elsewhere is an equality here.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import ReverseProcess, Transitions, build_process
from nablaflow.errors import UserError
from nablaflow.estimators import DenoisingAdjoint, Networks, Path
from nablaflow.models import Condition
from nablaflow.rewards import NamedReward
from tests.support.chain import Quadratic
from tests.support.gaussian import GaussianModel
from tests.support.paths import Nothing
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.5
STEPS = 6
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
IDENTITY = torch.eye(2, dtype=torch.float64)
REWARD = Quadratic(
    torch.tensor([[0.8, 0.3], [0.3, 0.2]], dtype=torch.float64),
    torch.tensor([0.7, -1.1], dtype=torch.float64),
)


class Normal:
    """N(mean, covariance) at x_0, and noised from there to a level that keeps ``kept``."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean, covariance

    def _inverse(self, kept: Tensor) -> Tensor:
        return (kept * self.covariance + (1 - kept) * IDENTITY).inverse()

    def score(self, x: Tensor, kept: Tensor) -> Tensor:
        return -(x - kept.sqrt() * self.mean) @ self._inverse(kept)

    def clean(self, x: Tensor, kept: Tensor) -> Tensor:
        """E[x_0 | x]."""
        gain = kept.sqrt() * self.covariance @ self._inverse(kept)
        return self.mean + (x - kept.sqrt() * self.mean) @ gain.T


def process_of(eta: float = 1.0) -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, "ddim", STEPS, eta, sigma_floor=0.01)


def reference_and_tilt(process: ReverseProcess) -> tuple[Normal, Normal]:
    """At x_0, which has noise of its own: alpha_bar_0 is not 1 here."""
    start = process.alpha_bar[0].double()
    prior = Normal(start.sqrt() * MEAN, start * COVARIANCE + (1 - start) * IDENTITY)
    precision = prior.covariance.inverse() + BETA * REWARD.A
    covariance = precision.inverse()
    mean = covariance @ (prior.covariance.inverse() @ prior.mean + BETA * REWARD.b)
    return prior, Normal(mean, covariance)


def estimated(adjoint_above: float, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate at ``x`` if x_0 is what is expected of it, and what it should be."""
    process = process_of()
    prior, tilt = reference_and_tilt(process)
    kept = process.alpha_bar[k].double() / process.alpha_bar[0].double()
    x0 = tilt.clean(x, kept)
    states = torch.stack([x0, *[x] * STEPS]).reshape(STEPS + 1, len(x), 1, 1, 2)
    trajectory = torch.arange(len(x))
    steps = torch.full_like(trajectory, k)
    transitions = Transitions(states[k], states[k - 1], steps, states[k], trajectory)
    path = Path(states[0], states, Condition(), [""] * len(x), transitions)
    model = GaussianModel(process, MEAN, COVARIANCE, Nothing())
    networks = Networks(model, REWARD.named())
    found = DenoisingAdjoint(adjoint_above=adjoint_above).estimate(path, networks, BETA).target
    gradient = tilt.score(x, kept) - prior.score(x, kept)
    # How the kernel's mean answers to a change of the score, by asking it.
    moved = score_slope(process, k) / process.sigma[k].double().square()
    return found.flatten(1), moved * gradient


def score_slope(process: ReverseProcess, k: int) -> Tensor:
    """d mean / d score, through epsilon = -sqrt(1 - a) score and x0_hat."""
    alpha_bar = process.alpha_bar[k].double()
    per_epsilon = (
        process.from_epsilon[k] - process.from_x0[k] * ((1 - alpha_bar) / alpha_bar).sqrt()
    )
    return -per_epsilon * (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("adjoint_above", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_the_mean_is_the_difference_of_the_scores(adjoint_above: float, k: int) -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    found, expected = estimated(adjoint_above, k, x)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("adjoint_above", "levels"), [(0.0, []), (1.0, [1, 2, 3, 4, 5, 6])])
def test_the_ends_of_the_range_are_one_estimate_alone(
    adjoint_above: float, levels: list[int]
) -> None:
    found = DenoisingAdjoint(adjoint_above=adjoint_above).rewardless_levels(process_of())
    assert found.nonzero()[:, 0].tolist() == levels


def test_everywhere_is_at_pure_noise_too() -> None:
    process = replace(process_of(), alpha_bar=process_of().alpha_bar.clone())
    process.alpha_bar[STEPS] = 0.0  # zero terminal SNR, flow matching
    assert not DenoisingAdjoint(adjoint_above=0.0).rewardless_levels(process).any()
    assert DenoisingAdjoint(adjoint_above=1e-9).rewardless_levels(process)[STEPS]


def test_between_them_a_level_decides() -> None:
    process = process_of()
    found = DenoisingAdjoint(adjoint_above=0.4).rewardless_levels(process)
    assert found.tolist() == [
        False,
        *(process.alpha_bar[1:] / process.alpha_bar[0] <= 0.4).tolist(),
    ]
    assert 0 < found.sum() < STEPS


def test_where_the_adjoint_has_no_level_the_reward_is_not_asked() -> None:
    process = process_of()
    states = torch.zeros(STEPS + 1, 1, 1, 1, 2, dtype=torch.float64)
    k, row = torch.tensor([STEPS]), torch.tensor([0])
    transitions = Transitions(states[STEPS], states[STEPS - 1], k, states[STEPS], row)
    path = Path(states[0], states, Condition(), [""], transitions)

    asked: list[int] = []

    def count(images: Tensor, prompts: list[str]) -> Tensor:
        asked.append(len(images))
        return images.sum((1, 2, 3))

    networks = Networks(
        GaussianModel(process, MEAN, COVARIANCE, Nothing()),
        NamedReward("counts", count),
    )
    DenoisingAdjoint(adjoint_above=1.0).estimate(path, networks, BETA)
    assert asked == []
    DenoisingAdjoint(adjoint_above=0.0).estimate(path, networks, BETA)
    assert asked == [1]


def test_no_pass_is_made_where_nothing_is_denoised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention cannot run on no rows."""
    rows: list[int] = []
    predict = GaussianModel.predict

    def count(model: GaussianModel, x: Tensor, *given: Any) -> Any:
        rows.append(len(x))
        return predict(model, x, *given)

    monkeypatch.setattr(GaussianModel, "predict", count)
    x = torch.zeros(5, 2, dtype=torch.float64)
    estimated(0.0, 1, x)
    assert rows == [5], "the adjoint's"
    estimated(1.0, 1, x)
    assert rows == [5, 5], "denoising's"


def test_a_sampler_whose_x_0_is_a_function_of_x_k_is_refused() -> None:
    with pytest.raises(UserError, match=r"^sampler: .* set sampler\.name=ddim and sampler\.eta=1"):
        DenoisingAdjoint().check(process_of(eta=0.3))
    DenoisingAdjoint().check(process_of())
