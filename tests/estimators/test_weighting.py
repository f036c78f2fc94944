"""Weights of the steps by their formulas, and figures by band that add up."""

import pytest
import torch

from nablaflow.diffusion import SAMPLERS, build_process
from nablaflow.estimators import WEIGHTINGS, Weighting, by_band, step_weight
from tests.support.schedules import STABLE_DIFFUSION


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("weighting", ["constant", "sigma2", "alpha_bar", "snr"])
def test_each_weight_is_its_formula(weighting: Weighting, sampler: str) -> None:
    process = build_process(STABLE_DIFFUSION, sampler, 8, 1.0, sigma_floor=0.01)
    k = torch.tensor([1, 8, 5, 5, 2])
    for found, step in zip(step_weight(weighting, process, k).tolist(), k.tolist(), strict=True):
        sigma, alpha_bar = float(process.sigma[step]), float(process.alpha_bar[step])
        expected = {
            "constant": 1.0,
            "sigma2": sigma**2,
            "alpha_bar": sigma**2 * alpha_bar,
            "snr": sigma**2 * min(1.0, alpha_bar / (1 - alpha_bar)),
        }[weighting]
        assert found == pytest.approx(expected, rel=1e-5)
    assert len(WEIGHTINGS) == 4


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 10, 50])
def test_bands_share_out_the_mean(steps: int) -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", steps, 1.0, sigma_floor=0.01)
    k = torch.arange(1, steps + 1).repeat(3)
    values = torch.rand(len(k), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bands = by_band("figure", values, process, k)
    total = torch.stack([band.mean() for band in bands.values()]).sum()
    torch.testing.assert_close(total, values.mean())
    covered: list[int] = []
    for name, band in bands.items():
        prefix, _, span = name.partition("_k")
        low, high = (int(edge) for edge in span.split("-"))
        assert prefix == "figure"
        inside = (k >= low) & (k <= high)
        assert torch.equal(band, torch.where(inside, values, 0.0))
        covered += range(low, high + 1)
    assert covered == list(range(1, steps + 1))
    assert len(bands) == min(4, steps)


def test_the_names_of_bands_sort_by_step() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 20, 1.0, sigma_floor=0.01)
    k = torch.arange(1, 21)
    bands = by_band("strength", k.double(), process, k)
    names = ["strength_k01-05", "strength_k06-10", "strength_k11-15", "strength_k16-20"]
    assert list(bands) == names == sorted(names)
