"""Learning rates of the comparison's entrants: one short run of each, beside each other.

    OMP_NUM_THREADS=1 python benchmarks/comparison_grid.py --minutes 1.5

Finished runs are not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nablaflow.comparison import ENTRANTS, ComparisonStudy, race
from nablaflow.progress import show
from nablaflow.report.comparison_table import comparison_markdown

SEED = 1000  # not among those of the comparison


def main() -> None:
    """Run the grid and print a table for each rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--methods", nargs="+", default=list(ENTRANTS))
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=Path("runs/comparison-grid"))
    given = parser.parse_args()
    for rate in given.rates:
        study = ComparisonStudy.named(
            given.methods,
            ["warmth"],
            given.out / f"{rate:g}",
            seeds=1,
            first_seed=SEED,
            minutes=given.minutes,
            beta=4.0,
            learning_rate=rate,
            measurements=1,
        )
        with show() as progress:
            (outcome,) = race(study, progress)
        print(f"learning rate {rate:g}\n\n{comparison_markdown(outcome.rows())}")


if __name__ == "__main__":
    main()
