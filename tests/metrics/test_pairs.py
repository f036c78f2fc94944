"""Means over pairs, against the sums written out."""

import torch

from nablaflow.metrics import pairs
from nablaflow.metrics.pairs import Cloud, between


def _cloud(n: int, seed: int) -> Cloud:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return Cloud.of(points, torch.rand(n, generator=generator, dtype=torch.float64))


def _without(cloud: Cloud, i: int) -> Cloud:
    keep = torch.arange(len(cloud)) != i
    return Cloud.of(cloud.points[keep], cloud.weights[keep])


def _within_written_out(cloud: Cloud) -> torch.Tensor:
    top, bottom = torch.zeros(2, dtype=torch.float64)
    for i, (x, v) in enumerate(zip(cloud.points, cloud.weights, strict=True)):
        for j, (y, w) in enumerate(zip(cloud.points, cloud.weights, strict=True)):
            if i != j:
                top, bottom = top + v * w * (x - y).norm(), bottom + v * w
    return top / bottom


def test_within_is_the_double_sum_with_and_without_each_row():
    cloud = _cloud(6, seed=0)
    torch.testing.assert_close(cloud.within.value, _within_written_out(cloud))
    expected = torch.stack([_within_written_out(_without(cloud, i)) for i in range(6)])
    torch.testing.assert_close(cloud.within.without, expected)


def test_between_is_the_double_sum_with_and_without_each_row():
    first, second = _cloud(4, seed=0), _cloud(6, seed=1)

    def written_out(a: Cloud, b: Cloud) -> torch.Tensor:
        distances = (a.points[:, None] - b.points).norm(dim=-1)
        return (a.weights[:, None] * b.weights * distances).sum()

    by_first, by_second = between(first, second)
    torch.testing.assert_close(by_first.value, written_out(first, second))
    torch.testing.assert_close(by_second.value, by_first.value)
    expected = torch.stack([written_out(_without(first, i), second) for i in range(4)])
    torch.testing.assert_close(by_first.without, expected)
    expected = torch.stack([written_out(first, _without(second, j)) for j in range(6)])
    torch.testing.assert_close(by_second.without, expected)


def test_chunks_make_no_difference(monkeypatch):
    first, second = _cloud(50, seed=0), _cloud(40, seed=1)
    whole = first.within, *between(first, second)
    monkeypatch.setattr(pairs, "_HELD", 3 * 40)
    again = Cloud.of(first.points, first.weights)
    chunked = again.within, *between(again, second)
    for expected, mean in zip(whole, chunked, strict=True):
        torch.testing.assert_close(mean.value, expected.value)
        torch.testing.assert_close(mean.without, expected.without)


def test_near_copies_far_from_the_origin_keep_their_distance():
    """Where squared norms are 1e4 and the distance 1e-3, float32 products would drown it."""
    points = torch.full((40, 2), 70.0, dtype=torch.float64)
    points[:20, 0] += 1e-3
    expected = 1e-3 * (2 * 20 * 20) / (40 * 39)
    torch.testing.assert_close(Cloud.of(points).within.value.item(), expected, rtol=1e-3, atol=0)
