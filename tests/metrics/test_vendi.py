"""Vendi score."""

import math

import numpy as np
import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.contract import View
from nablaflow.metrics.quadratic import cosine
from nablaflow.metrics.vendi import measure_vendi, vendi_score

DOUBLE = torch.float64


@pytest.mark.parametrize("dim", [6, 40])
def test_orthogonal_images_count_each(dim: int):
    assert vendi_score(3.0 * torch.eye(6, dim)).item() == pytest.approx(6.0)


def test_equal_images_count_once():
    assert vendi_score(torch.ones(9, 4) * torch.arange(1.0, 10.0)[:, None]).item() == pytest.approx(
        1.0
    )


def test_two_images_at_an_angle():
    """Eigenvalues (1 ± cos) / 2."""
    angle = 0.8
    x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=DOUBLE)
    shares = [(1 + math.cos(angle)) / 2, (1 - math.cos(angle)) / 2]
    assert vendi_score(x).item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_it_is_the_entropy_of_the_whole_matrix(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    values = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    values = values[values > 1e-12]
    assert vendi_score(x).item() == pytest.approx(np.exp(-(values * np.log(values)).sum()))


def test_counts_are_copies():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    counts = torch.tensor([[2.0, 1.0, 0.0, 3.0, 1.0]], dtype=DOUBLE)
    copies = x.repeat_interleave(counts[0].long(), dim=0)
    assert vendi_score(x, counts).item() == pytest.approx(vendi_score(copies).item())


def test_each_prompt_is_scored_for_itself():
    """Two prompts of 8 orthogonal images: 8 each, though there are only 8 directions in all."""
    index = torch.arange(2).repeat_interleave(8)
    view = View(torch.eye(8).repeat(2, 1), index, cosine)
    found = measure_vendi(view, view, Resampling(torch.Generator().manual_seed(0), 50))
    assert found.value == pytest.approx(8.0)
    assert found.low < 8.0
    assert found.high == pytest.approx(8.0)
    assert found.n == 16


def test_three_images_a_prompt_are_refused():
    view = View(torch.eye(3), torch.zeros(3, dtype=torch.long), cosine)
    with pytest.raises(UserError, match=r"vendi: 3 images .* 4 are needed"):
        measure_vendi(view, view, Resampling(torch.Generator()))
