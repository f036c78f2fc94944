"""The figures together: a Gaussian reference, its exact tilt as the policy, everything known."""

import json
import math
from dataclasses import replace

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.metrics import SampleSet, Summary, Yardstick, closing, summarize

BETA = 0.7
FIGURES = ("reward_mean", "diversity", "distance_to_reference", "distance_to_tilt")


def _gaussians(n: int, mean: float, seed: int) -> SampleSet:
    """Two prompts 3 apart; the reward is the first coordinate, which the tilt moves by beta."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(2).repeat(n // 2)
    x = torch.randn(n, 4, generator=generator) + torch.tensor([mean, 0.0, 0.0, 0.0])
    return SampleSet(x + 3.0 * index[:, None], x[:, 0], index)


BANK = _gaussians(3000, 0.0, seed=0)
REFERENCE = _gaussians(400, 0.0, seed=1)
TILTED = _gaussians(400, BETA, seed=2)


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarize(REFERENCE, TILTED, BANK, BETA)


def test_it_is_json_with_an_error_beside_each_figure(summary):
    restored = json.loads(json.dumps(summary, allow_nan=False))
    for name in ("reference", "policy", "exact_tilt"):
        assert set(restored[name]) >= {f + se for f in FIGURES for se in ("", "_se")} | {"n"}
        assert all(restored[name][f"{figure}_se"] > 0 for figure in FIGURES)
    assert (restored["policy"]["n"], restored["exact_tilt"]["n"]) == (400, 3000)
    # E[w]^2 / E[w^2] = exp(-beta^2), of 1500 rows a prompt; the smaller of two.
    expected = 1500 * math.exp(-(BETA**2))
    assert restored["exact_tilt"]["effective_sample_size"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("column", "figure", "truth"),
    [
        ("reference", "reward_mean", 0.0),
        ("policy", "reward_mean", BETA),
        ("exact_tilt", "reward_mean", BETA),
        # E|x - x'| of N(0, I_4) is 2 Gamma(5/2) / Gamma(2).
        *((c, "diversity", 2 * math.gamma(2.5)) for c in ("reference", "policy", "exact_tilt")),
        ("reference", "distance_to_reference", 0.0),
        ("policy", "distance_to_reference", BETA**2),
        ("exact_tilt", "distance_to_reference", BETA**2),
        ("policy", "distance_to_tilt", 0.0),
        ("exact_tilt", "distance_to_tilt", 0.0),
    ],
)
def test_every_figure_is_within_its_error_of_the_truth(summary, column, figure, truth):
    error = summary[column][f"{figure}_se"]
    assert error < 0.15
    assert summary[column][figure] == pytest.approx(truth, abs=3.5 * error)


def test_the_reference_is_measurably_off_the_tilt(summary):
    column = summary["reference"]
    assert column["distance_to_tilt"] > 5 * column["distance_to_tilt_se"]


def test_the_exact_tilt_closes_the_whole_way(summary):
    assert summary["closing"] == pytest.approx(1.0, abs=3.5 * summary["closing_se"])


def test_closing_by_hand():
    def column(value: float, se: float) -> dict:
        return {"reward_mean": value, "reward_mean_se": se}

    result = closing(column(1.0, 0.03), column(2.0, 0.04), column(3.0, 0.0))
    assert result is not None
    assert result.value == pytest.approx(0.5)
    assert result.se == pytest.approx(math.hypot(0.04, 0.015) / 2.0)
    assert closing(column(1.0, 0.03), column(2.0, 0.04), None) is None
    assert closing(column(1.0, 0.3), column(2.0, 0.1), column(1.5, 0.3)) is None


def test_figures_of_the_tilt_are_refused_where_few_rows_carry_them():
    summary = summarize(REFERENCE, TILTED, _gaussians(1000, 0.0, seed=0), beta=2.0)
    assert summary["effective_sample_size"] < 200
    assert summary["exact_tilt"] is None
    assert summary["closing"] is None
    assert summary["policy"]["distance_to_tilt"] is None
    assert summary["policy"]["distance_to_tilt_se"] is None
    assert summary["policy"]["distance_to_reference"] is not None


def test_frechet_is_refused_where_covariances_would_not_have_full_rank():
    few = replace(TILTED, **{name: value[:14] for name, value in vars(TILTED).items()})
    column = Yardstick.of(BANK, BETA).column(few)
    assert column["distance_to_reference"] is None
    assert column["reward_mean"] is not None


def test_other_prompts_are_refused():
    with pytest.raises(UserError, match="same prompts"):
        Yardstick.of(BANK, BETA).column(replace(TILTED, prompt_index=TILTED.prompt_index * 2))
