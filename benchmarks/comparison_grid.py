"""Learning rates of the comparison's entrants, each by the same search on `warmth`.

    OMP_NUM_THREADS=1 python benchmarks/comparison_grid.py --minutes 1.5

Of each entrant the two rates of `START` are run, then the next of `LADDER` beyond the better one
for as long as the distance to the tilt falls: the best rate has a worse one on either side, or
stands at an end of the ladder, which is said. Finished runs are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from nablaflow.comparison import ENTRANTS, ComparisonStudy, race
from nablaflow.progress import show
from nablaflow.storage.files import write_whole

SEED = 1000  # not among those of the comparison
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
START = (4, 5)  # places on the ladder; the same for every entrant


def main() -> None:
    """Search for each entrant and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(ENTRANTS))
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=Path("runs/comparison-grid"))
    given = parser.parse_args()
    print("method, best rate; rate: updates, reward, distance to the tilt", flush=True)
    for method in given.methods:
        rows = search(method, given.minutes, given.out)
        best = min(rows, key=lambda place: distance(rows[place]))
        edge = "" if best - 1 in rows and best + 1 in rows else " (at the edge)"
        cells = [shown(LADDER[place], rows[place]) for place in sorted(rows)]
        print(f"{method}, {LADDER[best]:g}{edge}; {'; '.join(cells)}", flush=True)
        found = {f"{LADDER[place]:g}": row for place, row in rows.items()}
        write_whole(given.out / f"{method}.json", json.dumps(found, indent=1) + "\n")


def search(method: str, minutes: float, out: Path) -> dict[int, dict[str, Any]]:
    """What was found at each place of the ladder that was tried."""
    rows = {place: run(method, LADDER[place], minutes, out) for place in START}
    low, high = START
    step = -1 if distance(rows[low]) < distance(rows[high]) else 1
    place = low if step < 0 else high
    while 0 <= place + step < len(LADDER):
        rows[place + step] = run(method, LADDER[place + step], minutes, out)
        if distance(rows[place + step]) >= distance(rows[place]):
            break
        place += step
    return rows


def run(method: str, rate: float, minutes: float, out: Path) -> dict[str, Any]:
    """The figures of one entrant at one rate."""
    study = ComparisonStudy.named(
        [method],
        ["warmth"],
        out / f"{rate:g}",
        seeds=1,
        first_seed=SEED,
        minutes=minutes,
        beta=4.0,
        learning_rate=rate,
        measurements=1,
    )
    with show() as progress:
        (outcome,) = race(study, progress)
    (row,) = [row for row in outcome.rows() if row["method"] == method]
    return dict(row)


def distance(row: dict[str, Any]) -> float:
    """To the tilt; a run that diverged is infinitely far."""
    found = row.get("distance_to_tilt", math.inf)
    return found if math.isfinite(found) else math.inf


def shown(rate: float, row: dict[str, Any]) -> str:
    figures = row.get("updates", math.nan), row["reward_mean"], distance(row)
    return "{:g}: {:.0f}, {:.3f}, {:.3f}".format(rate, *figures)


if __name__ == "__main__":
    main()
