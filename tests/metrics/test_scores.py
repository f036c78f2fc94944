"""Means of scores."""

import math

import pytest
import torch

from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.contract import View
from nablaflow.metrics.quadratic import cosine
from nablaflow.metrics.scores import measure_clip_score, measure_reward


def _measured(measure, values: list[float]):
    index = torch.tensor([0, 0, 1, 1])
    view = View(torch.tensor(values), index, cosine)
    return measure(view, view, Resampling(torch.Generator().manual_seed(0), 20))


def test_a_clip_score_is_never_negative():
    """Cosines 1, 1 / sqrt(2), 0 and -1: an image that contradicts its prompt counts nothing."""
    found = _measured(measure_clip_score, [100.0, 100.0 / math.sqrt(2.0), 0.0, -100.0])
    assert found.value == pytest.approx((100.0 + 100.0 / math.sqrt(2.0)) / 4)


def test_a_reward_may_be():
    found = _measured(measure_reward, [1.0, 2.0, -5.0, -5.0])
    assert found.value == pytest.approx((1.5 - 5.0) / 2)
    assert found.low < found.value < found.high
