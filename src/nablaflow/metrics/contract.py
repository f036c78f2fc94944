"""What a metric is: a name, what it looks at, and a measurement with an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.quadratic import Kernel
from nablaflow.typing import Batch

CHOSEN = "chosen"
"""The space that ``--features`` names."""


@dataclass(frozen=True)
class View:
    """Images of one model as a metric sees them.

    Attributes:
        rows: what the metric looks at, a row for each image: features (n, d) of one space, scores
            (n,), or the images themselves (n, 3, h, w).
        prompt_index: (n,) integers; equal means the same prompt.
        distance: between two rows of features.
    """

    rows: Tensor
    prompt_index: Tensor
    distance: Kernel

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Metric:
    """A figure of a model's images.

    Attributes:
        label: heading of its column.
        space: what it looks at: ``rewards``, ``pictures``, a space of its own, or `CHOSEN`.
        measure: images of the model and of the reference to the figure; raises ``UserError`` where
            they are too few. Every use of a metric is by this one function.
        least: numbers of prompts and of dimensions to the images that it needs in all.
        ready: raises ``UserError`` where a package or weights are missing; called before any work.
        distance: whether less is nearer to the reference, so that a budget is the most allowed.
    """

    label: str
    space: str
    measure: Callable[[View, View, Resampling], Estimate]
    least: Callable[[int, int], int]
    ready: Callable[[], object] = bool
    distance: bool = False


def double(rows: Tensor) -> Tensor:
    """On the CPU in float64, so that figures do not depend on the device."""
    return rows.detach().to("cpu").double()


def require_finite(what: str, *views: View) -> None:
    """Refuse features, (n, d), that are NaN or infinite: no distance from them means anything.

    Raises:
        UserError: with how many of the images have such features.
    """
    for view in views:
        broken = len(view) - int(view.rows.isfinite().all(1).sum())
        if broken:
            raise UserError(
                f"{what}: the features of {broken} of {len(view)} images are NaN or infinite; look "
                "at the images and at the weights of the features"
            )


def scores(view: View) -> Batch:
    """(n,) float64, of a view whose rows are one number each."""
    return double(view.rows).reshape(len(view))
