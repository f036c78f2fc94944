"""Estimates: combining errors, against textbook formulas."""

import math

import pytest
import torch

from nablaflow.metrics.estimate import Estimate, average, jackknife_variance


def test_average_adds_independent_errors_in_quadrature():
    result = average([Estimate(1.0, 3.0), Estimate(3.0, 4.0)])
    assert result == Estimate(2.0, 2.5)


def test_jackknife_of_a_mean_is_its_textbook_standard_error():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    without_each = (values.sum() - values) / 49
    textbook = values.var() / 50
    assert jackknife_variance(without_each) == pytest.approx(textbook.item(), rel=1e-9)
    assert math.isfinite(jackknife_variance(without_each))


def test_without_an_interval_of_its_own_the_ends_are_the_normal_ones() -> None:
    plain = Estimate(1.0, 0.5)
    assert (plain.low, plain.high) == pytest.approx((1.0 - 1.959964 * 0.5, 1.0 + 1.959964 * 0.5))
    drawn = Estimate(1.0, 0.5, (0.9, 1.6), 8)
    assert (drawn.low, drawn.high) == (0.9, 1.6)
