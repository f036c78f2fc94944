"""A model's images as metrics see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from nablaflow.metrics.summary import SampleSet
from nablaflow.typing import Images

ImageLook = Callable[[Tensor, list[str]], Tensor]
"""``(images in [0, 1], prompts) -> rows``: what a metric looks at, a row for each image."""


@dataclass(frozen=True)
class Sampled:
    """A set of samples as the figures see them, with some images to look at.

    Attributes:
        rows: of all images, by the name of each further look at them.
    """

    samples: SampleSet
    images: Images
    prompts: list[str]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
