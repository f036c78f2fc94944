"""A summary as a run writes it, with and without a trustworthy tilt."""

from typing import Any

import pytest


def _column(reward: float, n: int) -> dict[str, Any]:
    return {
        "reward_mean": reward,
        "reward_mean_se": 0.0042,
        "diversity": 3.25,
        "diversity_se": 0.031,
        "distance_to_reference": 0.125,
        "distance_to_reference_se": 0.01,
        "distance_to_tilt": 0.0625,
        "distance_to_tilt_se": 0.002,
        "n": n,
    }


@pytest.fixture
def summary() -> dict[str, Any]:
    return {
        "reference": _column(0.25, 512),
        "policy": _column(0.625, 512),
        "exact_tilt": _column(0.75, 8192) | {"effective_sample_size": 412.3},
        "effective_sample_size": 412.3,
        "closing": 0.75,
        "closing_se": 0.011,
        "updates": 1200,
        "seconds": 754.2,
        "peak_rss_mb": 3072.0,
    }


@pytest.fixture
def untrusted(summary: dict[str, Any]) -> dict[str, Any]:
    """The same run where too few reference samples carry the tilt."""
    unknown = {"distance_to_tilt": None, "distance_to_tilt_se": None}
    return summary | {
        "reference": summary["reference"] | unknown,
        "policy": summary["policy"] | unknown,
        "exact_tilt": None,
        "effective_sample_size": 57.2,
        "closing": None,
        "closing_se": None,
    }
