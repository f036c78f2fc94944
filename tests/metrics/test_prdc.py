"""Precision, recall, density and coverage: against loops over numpy arrays."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.contract import View
from nablaflow.metrics.prdc import (
    Neighbourhoods,
    measure_coverage,
    measure_density,
    measure_precision,
    measure_recall,
)
from nablaflow.metrics.quadratic import Kernel, cosine, euclidean

ALL = (measure_precision, measure_recall, measure_density, measure_coverage)


def _loops(x: np.ndarray, y: np.ndarray, k: int) -> list[float]:
    """The four of images x and reference y, a point at a time."""

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(points[i] - p) for p in points)[k]  # [0] is the point itself

    own = [radius(x, i) for i in range(len(x))]
    known = [radius(y, j) for j in range(len(y))]
    gap = [[np.linalg.norm(a - b) for b in y] for a in x]
    rows, columns = range(len(x)), range(len(y))
    precision = sum(any(gap[i][j] <= known[j] for j in columns) for i in rows) / len(x)
    recall = sum(any(gap[i][j] <= own[i] for i in rows) for j in columns) / len(y)
    density = sum(gap[i][j] <= known[j] for i in rows for j in columns) / (k * len(x))
    coverage = sum(min(gap[i][j] for i in rows) <= known[j] for j in columns) / len(y)
    return [precision, recall, density, coverage]


def _views(n: int, m: int, shift: float) -> tuple[View, View]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, generator=generator) + shift, torch.randn(m, 3, generator=generator)
    return (
        View(x, torch.arange(n) % 2, euclidean),
        View(y, torch.arange(m) % 2, euclidean),
    )


@pytest.mark.parametrize("shift", [0.0, 1.0, 9.0])
def test_they_are_the_loops(shift: float):
    own, reference = _views(40, 30, shift)
    found = [m(own, reference, Resampling(torch.Generator().manual_seed(0), 20)) for m in ALL]
    expected = _loops(own.rows.double().numpy(), reference.rows.double().numpy(), 5)
    assert [f.value for f in found] == pytest.approx(expected)
    assert all(f.low <= f.value <= f.high for f in found)
    if shift == 9.0:
        assert [f.value for f in found] == [0, 0, 0, 0]


def test_distances_are_the_features_own():
    """Under 1 - cos an image is what its direction is: lengths of any size change nothing."""
    generator = torch.Generator().manual_seed(1)
    plain = _views(40, 30, 0.3)
    lengths = [torch.rand(len(view), 1, generator=generator) * 9 + 0.1 for view in plain]
    stretched = [
        View(view.rows * length, view.prompt_index, cosine)
        for view, length in zip(plain, lengths, strict=True)
    ]
    found = [m(*stretched, Resampling(torch.Generator().manual_seed(0), 20)) for m in ALL]
    # On the unit sphere 1 - cos and the Euclidean distance have the same neighbours.
    unit = [normalize(view.rows.double(), dim=1).numpy() for view in plain]
    assert [f.value for f in found] == pytest.approx(_loops(*unit, 5))


def test_images_all_alike_are_at_no_distance_under_the_cosine():
    """A ball of radius zero holds its twins; with rounding in the distance it would hold some."""
    own, _ = _views(1, 1, 0.5)
    alike = own.rows.expand(30, 3) @ torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    near = Neighbourhoods.of(alike, alike, distance=cosine)
    ones = torch.ones(30, dtype=torch.float64)
    assert near.precision(ones, ones) == near.recall(ones, ones) == near.coverage(ones, ones) == 1


def test_a_few_rows_at_a_time_are_all_at_once(monkeypatch):
    own, reference = _views(40, 30, 0.5)
    whole = Neighbourhoods.of(own.rows, reference.rows)
    monkeypatch.setattr("nablaflow.metrics.quadratic._HELD", 100)  # two rows, and three
    parts = Neighbourhoods.of(own.rows, reference.rows)
    for name in ("own", "own_order", "known", "known_order", "across"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_features_that_are_not_finite_are_refused():
    own, reference = _views(40, 30, 0.0)
    own.rows[2] = torch.nan
    with pytest.raises(UserError, match="features of 1 of 40 images are NaN or infinite"):
        measure_recall(own, reference, Resampling(torch.Generator()))


@pytest.mark.parametrize("distance", [euclidean, cosine])
def test_a_sample_has_all_of_itself(distance: Kernel):
    own, _ = _views(40, 30, 0.0)
    near = Neighbourhoods.of(own.rows, own.rows, k=5, distance=distance)
    ones = torch.ones(40, dtype=torch.float64)
    assert near.precision(ones, ones) == near.recall(ones, ones) == near.coverage(ones, ones) == 1
    assert near.density(ones, ones) == pytest.approx(1 + 1 / 5), "each ball holds its centre too"


def test_counts_are_copies_but_for_the_copies_of_a_point_itself():
    """Doubling every row: the second neighbour of the doubled sample is the first of the sample."""
    own, reference = _views(30, 30, 0.5)
    twice = torch.full((30,), 2.0, dtype=torch.float64)
    ones = torch.ones(30, dtype=torch.float64)
    doubled = Neighbourhoods.of(own.rows, reference.rows, k=4)
    plain = Neighbourhoods.of(own.rows, reference.rows, k=2)
    assert doubled.precision(twice, twice) == plain.precision(ones, ones)
    assert doubled.recall(twice, twice) == plain.recall(ones, ones)
    assert doubled.density(twice, twice) == pytest.approx(plain.density(ones, ones).item())
    assert doubled.coverage(twice, twice) == plain.coverage(ones, ones)


@pytest.mark.parametrize("measure", ALL)
def test_too_few_are_refused(measure):
    own, reference = _views(40, 18, 0.0)
    with pytest.raises(UserError, match="18 images are too few for neighbour 5; use --n 20"):
        measure(own, reference, Resampling(torch.Generator()))


def test_the_four_figures_of_the_same_images_measure_distances_once():
    calls = []

    def counted(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        return euclidean(rows, columns)

    index = torch.zeros(30, dtype=torch.long)
    rows = [torch.randn(30, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    for measure in ALL:
        # As the protocol does: new views of the same tensors for each metric.
        measure(*(View(each, index, counted) for each in rows), Resampling(torch.Generator(), 5))
    assert calls == [30, 30, 30]
