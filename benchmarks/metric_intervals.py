"""Whether the metrics' intervals are as wide as the figures scatter, on Gaussians.

    python benchmarks/metric_intervals.py

A trial draws 64 images in 8 dimensions and as many of a reference 0.5 away. ``width`` is the
interval's over that of the figure's own scatter across trials, and 1 is right. Of the Fréchet
distance, whose truth is known, there is the share of intervals that hold it, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.catalog import METRICS
from nablaflow.metrics.contract import View
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.fid import measure_frechet
from nablaflow.metrics.quadratic import euclidean

NAMES = ("diversity", "vendi", "mmd", "frechet", "precision", "recall", "density", "coverage")
NORMAL = 1.96
Draw = Callable[[torch.Generator], tuple[View, View]]


def gaussians(n: int, dim: int, prompts: int, shift: float) -> Draw:
    """Images of N(shift, I), and a reference of N(0, I), in so many prompts."""
    index = torch.arange(prompts).repeat(n // prompts)

    def draw(generator: torch.Generator) -> tuple[View, View]:
        rows = [torch.randn(len(index), dim, generator=generator).double() for _ in range(2)]
        return View(rows[0] + shift, index, euclidean), View(rows[1], index, euclidean)

    return draw


def trials(
    measure: Callable[[View, View, Resampling], Estimate], draw: Draw, times: int
) -> list[Estimate]:
    generator = torch.Generator().manual_seed(0)
    return [measure(*draw(generator), Resampling(generator)) for _ in range(times)]


def width(found: list[Estimate]) -> float:
    """Mean interval over the width that the figures' own spread would give."""
    spread = torch.tensor([each.value for each in found]).std().item()
    mean = sum(each.high - each.low for each in found) / len(found)
    return mean / (2 * NORMAL * spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    given = parser.parse_args()
    for prompts in (16, 2):
        draw = gaussians(64, 8, prompts, 0.5)
        for name in NAMES:
            found = trials(METRICS[name].measure, draw, given.trials)
            print(f"{64 // prompts} images a prompt, {name}: width {width(found):.2f}", flush=True)
    for name in ("mmd", "frechet"):
        found = trials(METRICS[name].measure, gaussians(400, 8, 4, 0.0), given.trials)
        print(f"equal distributions, 400 images, {name}: width {width(found):.2f}", flush=True)
    for n, dim, prompts in ((64, 8, 16), (64, 8, 2), (1000, 3, 4), (34, 32, 2)):
        found = trials(measure_frechet, gaussians(n, dim, prompts, 0.5), given.trials)
        truth, mean = 0.25 * dim, sum(each.value for each in found) / len(found)
        held = [sum(f.low <= at <= f.high for f in found) / len(found) for at in (truth, mean)]
        print(
            f"Fréchet distance of {n} images in {dim} dimensions, {prompts} prompts: the truth is "
            f"{truth:.2f}, the figure's mean {mean:.2f}; held by {held[0]:.0%} and {held[1]:.0%}; "
            f"width {width(found):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
