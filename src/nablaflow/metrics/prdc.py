"""Precision, recall, density and coverage, by nearest neighbours in a feature space.

A sample's manifold is the union of the balls around its points that reach to their k-th nearest
neighbours. Precision and recall: Kynkäänniemi et al. (arXiv 1904.06991), equation 2. Density and
coverage: Naeem et al. (arXiv 2002.09797), equations 6 and 7, less moved by single outliers.

Both papers take Euclidean distances. Here it is the features' own: 1 - cos where a vector's length
says nothing, so that neighbours are what `diversity` calls near.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Counts, ReferenceCounts, Resampling, measured
from nablaflow.metrics.contract import View, double, require_finite
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.quadratic import Kernel, euclidean, kernel_blocks

NEIGHBOURS = 5
LEAST = 4 * NEIGHBOURS
"""Images in all: with fewer a ball around a point takes in much of the sample."""
_KEPT = 12  # times k: as many nearest neighbours are looked at for the counted k-th


@dataclass(frozen=True)
class Neighbourhoods:
    """Distances among and between two samples, of which each drawn sample takes its part.

    Attributes:
        own: (n, l) distances to the nearest other rows of the first sample, ascending.
        own_order: (n, l) which these are.
        known: (m, l), and ``known_order``: the same of the second, the reference.
        across: (n, m) from the first to the second.
        k: the neighbour that a ball reaches to.
    """

    own: Tensor
    own_order: Tensor
    known: Tensor
    known_order: Tensor
    across: Tensor
    k: int

    @classmethod
    def of(
        cls,
        features: Tensor,
        reference: Tensor,
        k: int = NEIGHBOURS,
        distance: Kernel = euclidean,
    ) -> Neighbourhoods:
        """Measure all distances, a few rows at a time; only ``across`` is kept whole, 8 n m bytes.

        Args:
            features: (n, d).
            reference: (m, d).
            k: the neighbour that a ball reaches to.
            distance: between rows (a, d) and (b, d), (a, b); zero for equal rows, in any units.
        """
        x, y = double(features), double(reference)
        across = torch.empty(len(x), len(y), dtype=torch.float64)
        for start, block in kernel_blocks(x, y, distance):
            across[start : start + len(block)] = block
        return cls(*_nearest(x, k, distance), *_nearest(y, k, distance), across, k)

    def precision(self, counts: Tensor, known_counts: Tensor) -> Tensor:
        """Share of the images that lie on the reference's manifold; counts (n,) and (m,)."""
        inside = self.across <= self._known_radii(known_counts)
        return _share(inside[:, known_counts > 0].any(1), counts)

    def recall(self, counts: Tensor, known_counts: Tensor) -> Tensor:
        """Share of the reference that lies on the images' manifold."""
        inside = self.across <= self._own_radii(counts)[:, None]
        return _share(inside[counts > 0].any(0), known_counts)

    def density(self, counts: Tensor, known_counts: Tensor) -> Tensor:
        """In how many of the reference's balls an image lies, over k; may be above 1."""
        inside = (self.across <= self._known_radii(known_counts)).double()
        return counts @ inside @ known_counts / (self.k * counts.sum())

    def coverage(self, counts: Tensor, known_counts: Tensor) -> Tensor:
        """Share of the reference whose ball holds an image."""
        inside = self.across <= self._known_radii(known_counts)
        return _share(inside[counts > 0].any(0), known_counts)

    def _own_radii(self, counts: Tensor) -> Tensor:
        return _radii(self.own, self.own_order, counts, self.k)

    def _known_radii(self, counts: Tensor) -> Tensor:
        return _radii(self.known, self.known_order, counts, self.k)


Figure = Callable[[Neighbourhoods, Tensor, Tensor], Tensor]


def _measure(
    figure: Figure, most: float, own: View, reference: View, resampling: Resampling
) -> Estimate:
    found = min(len(own), len(reference))
    if found < LEAST:
        raise UserError(
            f"nearest neighbours: {found} images are too few for neighbour {NEIGHBOURS}; use --n "
            f"{LEAST} or more"
        )
    require_finite("nearest neighbours", own, reference)
    near = _neighbourhoods(own, reference)

    def statistic(counts: Counts, known_counts: ReferenceCounts) -> Tensor:
        pairs = zip(counts, known_counts, strict=True)
        return torch.stack([figure(near, c, e) for c, e in pairs])

    drawn = (resampling.counts(view.prompt_index) for view in (own, reference))
    return measured(statistic, resampling, *drawn, n=len(own), bounds=(0.0, most))


@lru_cache(maxsize=1)
def _neighbourhoods(own: View, reference: View) -> Neighbourhoods:
    """The four figures of the same images, which follow each other, measure the distances once."""
    return Neighbourhoods.of(own.rows, reference.rows, distance=reference.distance)


measure_precision = partial(_measure, Neighbourhoods.precision, 1.0)
measure_recall = partial(_measure, Neighbourhoods.recall, 1.0)
measure_density = partial(_measure, Neighbourhoods.density, float("inf"))
measure_coverage = partial(_measure, Neighbourhoods.coverage, 1.0)


def _nearest(points: Tensor, k: int, distance: Kernel) -> tuple[Tensor, Tensor]:
    kept = min(_KEPT * k, len(points) - 1)
    near = []
    for start, block in kernel_blocks(points, points, distance):
        block.diagonal(start).fill_(float("inf"))  # a point is not its own neighbour
        near.append(block.topk(kept, largest=False))
    return torch.cat([each.values for each in near]), torch.cat([each.indices for each in near])


def _radii(distances: Tensor, order: Tensor, counts: Tensor, k: int) -> Tensor:
    """Distance at which the neighbours of each row count for k in all."""
    reached = (counts[order].cumsum(1) >= k).double().argmax(1)
    return distances.gather(1, reached[:, None])[:, 0]


def _share(holds: Tensor, counts: Tensor) -> Tensor:
    return counts @ holds.double() / counts.sum()
