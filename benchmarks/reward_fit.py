"""How well a reward is fitted to 200 synthetic pairs of scenes: held-out accuracy, and the time.

    python benchmarks/reward_fit.py [--seeds 5] [--first 0] [--out runs/reward_fit.json]

A row is one seed: fresh pairs, features of the embedded model, five folds, then 500 fresh pairs
that no head has seen. ``truth`` is the share of these on which the fit agrees with the rule itself,
``labels`` with judgements as noisy as those it was fitted to.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from nablaflow import features
from nablaflow.fitting import HeadSettings, fit_folder
from nablaflow.nano.judged import write_judged
from nablaflow.nano.preferences import PAIRS, draw_pairs, utility
from nablaflow.nano.scenes import Scenes, render

FRESH = 500


def measure(seed: int, name: str) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        write_judged(Path(folder), draw_pairs(PAIRS, generator))
        began, spent = time.perf_counter(), time.process_time()
        found = fit_folder(Path(folder), name, HeadSettings(), seed=seed)
        wall, cpu = time.perf_counter() - began, time.process_time() - spent
    preferred, rejected = draw_pairs(FRESH, generator)
    extractor = features.load(name)

    @torch.no_grad()
    def scores(scenes: Scenes) -> torch.Tensor:
        parts = [extractor(images) for images in render(scenes).split(50)]
        return found.heads(torch.cat(parts)).mean(0)

    right = scores(preferred) > scores(rejected)
    rule = utility(preferred) > utility(rejected)
    return {
        "seed": seed,
        "folds": found.about["held_out"]["accuracy"],
        "labels": float(right.float().mean()),
        "truth": float((right == rule).float().mean()),
        "calibration_error": found.about["held_out"]["calibration_error"],
        "seconds": wall,
        "cpu_seconds": cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first row")
    parser.add_argument("--features", default="nano")
    parser.add_argument("--out", type=Path, default=Path("runs/reward_fit.json"))
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    rows = [measure(seed, given.features) for seed in seeds]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"features": given.features, "rows": rows}, indent=2) + "\n")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
