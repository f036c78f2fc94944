"""What x_k leaves open of x_0, against closed forms, quadrature and the paper's own formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import (
    Prediction,
    ReverseProcess,
    build_process,
    check_variance,
    left_open,
    mean_per_x0,
    squared_errors,
    trajectory_noise,
)
from nablaflow.errors import UserError
from tests.support.schedules import DDPM, STABLE_DIFFUSION

N = 40_000
VARIANCES = torch.tensor([0.05, 0.6, 2.0], dtype=torch.float64)
MODES, WIDTH = (-1.0, 0.6), 0.3  # of a mixture on a line, of equal weights

Predict = Callable[[Tensor, Tensor], Prediction]


def process_of(config: dict[str, Any], name: str = "ddim", **settings: Any) -> ReverseProcess:
    parts = {"steps": 10, "eta": 1.0, "sigma_floor": 0.01} | settings
    return build_process(config, name, **parts)


def normal(process: ReverseProcess) -> Predict:
    """Posterior means of N(0, diag(VARIANCES))."""

    def predict(x: Tensor, k: Tensor) -> Prediction:
        a = process.alpha_bar.double()[k[0]]
        x0_hat = a.sqrt() * VARIANCES / (a * VARIANCES + 1 - a) * x
        return Prediction(x0_hat, (x - a.sqrt() * x0_hat) / (1 - a).sqrt())

    return predict


def mixture(process: ReverseProcess) -> Predict:
    """Posterior means of the mixture, by the two components' own."""

    def predict(x: Tensor, k: Tensor) -> Prediction:
        a = process.alpha_bar.double()[k[0]]
        spread = a * WIDTH**2 + 1 - a
        offsets = torch.stack([x - a.sqrt() * mode for mode in MODES])
        share = (-0.5 * offsets.square() / spread).softmax(0)
        means = torch.stack([torch.full_like(x, mode) for mode in MODES])
        x0_hat = (share * (means + a.sqrt() * WIDTH**2 / spread * offsets)).sum(0)
        return Prediction(x0_hat, (x - a.sqrt() * x0_hat) / (1 - a).sqrt())

    return predict


def generated(clean: Tensor, process: ReverseProcess, generator: torch.Generator) -> Tensor:
    """Of the level alpha_bar_0, as a sampler's ends are."""
    start = process.alpha_bar[0].double()
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    return start.sqrt() * clean + (1 - start).sqrt() * noise


PROCESSES = [
    process_of(STABLE_DIFFUSION),
    process_of(STABLE_DIFFUSION | {"set_alpha_to_one": True}),
    process_of(STABLE_DIFFUSION, "sde-dpmsolver++"),
    process_of(DDPM, "ddpm"),
]
IDS = ["ends at its least noise", "ends clean", "sde", "ddpm"]


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_of_a_normal_it_is_the_posteriors_variance(process: ReverseProcess) -> None:
    """(1 / S + a / (1 - a))^-1, mean over the coordinates, at every level."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(N, 1, 1, 3, dtype=torch.float64, generator=generator)
    x0 = generated(VARIANCES.sqrt() * noise, process, generator)
    found = left_open(process, squared_errors(process, x0, normal(process), generator))
    here = process.alpha_bar.double()[1:, None]
    expected = 1.0 / (1.0 / VARIANCES + here / (1 - here))
    # Where the end is noisy a larger part of the errors is taken away again.
    torch.testing.assert_close(found[1:], expected.mean(1), rtol=0.05, atol=0.0)
    assert float(found[0]) == 0.0


@pytest.mark.parametrize("process", PROCESSES[:2], ids=IDS[:2])
def test_of_a_mixture_it_is_that_of_quadrature_and_of_the_papers_formula(
    process: ReverseProcess,
) -> None:
    generator = torch.Generator().manual_seed(1)
    which = torch.randint(2, (N,), generator=generator)
    noise = torch.randn(N, dtype=torch.float64, generator=generator)
    clean = torch.tensor(MODES, dtype=torch.float64)[which] + WIDTH * noise
    x0 = generated(clean.reshape(-1, 1, 1, 1), process, generator)
    found = left_open(process, squared_errors(process, x0, mixture(process), generator))
    grid = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    density = sum((-0.5 * ((grid - mode) / WIDTH).square()).exp() for mode in MODES)
    assert isinstance(density, Tensor)
    x = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    for k in range(1, process.steps + 1):
        a = process.alpha_bar.double()[k]
        likelihood = torch.distributions.Normal(a.sqrt() * grid, (1 - a).sqrt())
        joint = density.log() + likelihood.log_prob(x[:, None])
        posterior, marginal = joint.softmax(1), joint.logsumexp(1).softmax(0)
        mean = posterior @ grid
        expected = float(marginal @ (posterior @ grid.square() - mean.square()))
        assert float(found[k]) == pytest.approx(expected, rel=0.06)
        score = (a.sqrt() * mean - x) / (1 - a)  # Tweedie
        power = float(marginal @ score.square())
        paper = float((1 - a) / a * (1 - (1 - a) * power))
        assert paper == pytest.approx(expected, rel=1e-3)


def test_kernels_have_it_besides_their_own_and_the_floor_comes_last() -> None:
    open_ = torch.linspace(0.0, 1.0, 11)
    own = process_of(STABLE_DIFFUSION | {"set_alpha_to_one": True})
    wide = process_of(STABLE_DIFFUSION | {"set_alpha_to_one": True}, left_open=open_)
    slope = mean_per_x0(own)
    expected = (own.sigma.double().square() + (slope * slope) * open_.double()).sqrt()
    torch.testing.assert_close(wide.sigma[2:].double(), expected[2:], rtol=1e-5, atol=0.0)
    assert float(own.sigma[1]) == pytest.approx(0.01)
    assert float(wide.sigma[1]) == pytest.approx(float(slope[1]) * 0.1**0.5, rel=1e-4)
    nothing = process_of(STABLE_DIFFUSION | {"set_alpha_to_one": True}, left_open=0 * open_)
    assert torch.equal(nothing.sigma, own.sigma)
    for table in ("timestep", "alpha_bar", "from_x", "from_x0", "from_epsilon"):
        assert torch.equal(getattr(wide, table), getattr(own, table))


def test_with_the_noises_luck_it_is_never_below_nothing() -> None:
    process = process_of(STABLE_DIFFUSION)
    assert (left_open(process, torch.zeros(11, dtype=torch.float64)) == 0.0).all()


def test_each_samples_noise_is_its_own() -> None:
    process = process_of(STABLE_DIFFUSION)
    x0 = torch.randn(4, 1, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    predict = normal(process)
    whole = squared_errors(process, x0, predict, trajectory_noise([5, 6, 7, 8]))
    parts = [
        squared_errors(process, x0[rows], predict, trajectory_noise(seeds))
        for rows, seeds in ((slice(0, 3), [5, 6, 7]), (slice(3, 4), [8]))
    ]
    torch.testing.assert_close(whole, (3 * parts[0] + parts[1]) / 4)


def test_a_scheduler_with_the_larger_variance_is_refused() -> None:
    with pytest.raises(UserError, match=r"^sampler\.variance: .*fixed_large.*sampler\.name=ddim"):
        process_of(DDPM | {"variance_type": "fixed_large"}, "ddpm", left_open=torch.zeros(11))


def test_a_name_that_is_none_is_answered_with_those_there_are() -> None:
    check_variance("posterior", "variance")
    with pytest.raises(UserError, match=r"^--variance: no variance 'fixed'; choose one of analyt"):
        check_variance("fixed", "--variance")
