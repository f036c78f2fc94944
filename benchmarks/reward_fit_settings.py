"""Which settings of the heads fit 200 synthetic pairs best, by five folds of those pairs alone.

    python benchmarks/reward_fit_settings.py [--seeds 12] [--first 100] [--settings members=24]

A row is one choice of settings; the seeds are others than those of ``reward_fit.py``, and no fresh
pair is looked at. ``difference`` is the mean over the seeds of the accuracy less that of the
default settings, on the same folds, in points, and its standard error.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from nablaflow import features
from nablaflow.fitting import HeadSettings, Judgements, fit
from nablaflow.fitting.training import Rows
from nablaflow.nano.preferences import PAIRS, draw_pairs
from nablaflow.nano.scenes import render

CHOICES: list[dict[str, Any]] = [
    {},
    {"penalty": 3e-2},
    {"penalty": 3e-3},
    {"members": 24},
    {"hidden": 16},
    {"patience": 2000},
]


@torch.no_grad()
def embedded(seed: int) -> torch.Tensor:
    """Features of a seed's pairs, the preferred images and then the rejected ones."""
    sides = draw_pairs(PAIRS, torch.Generator().manual_seed(seed))
    images = (torch.cat([render(side) for side in sides]) * 255).round() / 255
    extractor = features.load("nano")
    return torch.cat([extractor(part) for part in images.split(50)])


def held_out(found: torch.Tensor, settings: HeadSettings, seed: int) -> dict[str, float]:
    first = torch.arange(PAIRS)
    names = [Path(str(number)) for number in range(2 * PAIRS)]
    judgements = Judgements("pairs", names, Rows(first, first + PAIRS), None)
    return fit(judgements, found, "nano", settings, seed=seed).about["held_out"]


def parse(text: str) -> dict[str, Any]:
    pairs = (part.split("=") for part in text.split(",") if part)
    return {
        name: float(value) if "." in value or "e" in value else int(value) for name, value in pairs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--settings", type=parse, nargs="*", help="name=value,name=value")
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    found = {seed: embedded(seed) for seed in seeds}
    base = torch.zeros(len(seeds))
    choices = CHOICES if given.settings is None else [{}, *given.settings]
    for choice in choices:
        figures = [held_out(found[seed], HeadSettings(**choice), seed) for seed in seeds]
        accuracy = 100 * torch.tensor([each["accuracy"] for each in figures])
        loss = sum(each["log_loss"] for each in figures) / len(figures)
        base = base if choice else accuracy
        apart = accuracy - base
        print(
            f"{choice or 'default'}: accuracy {accuracy.mean():.2f} %, "
            f"difference {apart.mean():+.2f} ± {apart.std() / len(seeds) ** 0.5:.2f}, "
            f"log loss {loss:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
