"""Learning rates of the comparison's entrants, each by the same search on `warmth`.

    OMP_NUM_THREADS=1 python benchmarks/comparison_grid.py --minutes 1.5
    OMP_NUM_THREADS=1 python benchmarks/comparison_grid.py --minutes 1.5 --own

Of each entrant the two rates of `START` are run, then the next of `LADDER` beyond the better one
for as long as the distance to the tilt falls: the best rate has a worse one on either side, or
stands at an end of the ladder, which is said. ``--own`` keeps the rate that stands in
`entrants.py` and tries two values of one setting of the method's own beside the one it has there.
Finished runs are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow.comparison import ENTRANTS, ComparisonStudy, race
from nablaflow.comparison.study import ComparisonCell
from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.methods.own import load_method
from nablaflow.progress import show
from nablaflow.storage.files import write_whole

SEED = 1000  # not among those of the comparison
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
BANK = "bank.safetensors"  # with its scores, the same for every run
START = (4, 5)  # places on the ladder; the same for every entrant

OWN: Mapping[str, tuple[str, tuple[Any, Any]]] = {
    "residual-nabla-db": ("training.updates_per_rollout", (1, 8)),
    "adjoint-matching": ("method.stride", (2, 5)),
    "ddpo-published": ("method.clip_range", (1e-3, 1e-1)),
    "refl": ("method.last", (0.5, 1.0)),
    "draft": ("method.k", (1, 5)),
    "alignprop": ("method.most", (3, 5)),
    "reward-weighted-regression": ("training.images_per_prompt", (8, 32)),
    "flow-grpo": ("method.kl_weight", (4e-3, 4e-1)),
    "diffusion-nft": ("method.policy_share", (0.3, 3.0)),
    "vgg-flow": ("method.trust", ("linear", "one")),
}
"""A setting of each method's own, and its two further values."""


@dataclass(frozen=True)
class Changed(ComparisonStudy):
    """A comparison whose runs have ``change`` laid over their entrants' settings."""

    change: str = ""

    def config(self, cell: ComparisonCell) -> Config:
        config = super().config(cell)
        if not self.change or cell.method not in self.methods:  # what measures has its own
            return config
        return load_config(None, [self.change], config.model_dump(mode="json"), load_method)


def main() -> None:
    """Search for each entrant and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=list(ENTRANTS))
    parser.add_argument("--own", action="store_true", help="try a setting of each method's own")
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=Path("runs/comparison-grid"))
    given = parser.parse_args()
    if given.own:
        print("method, setting; value: updates, reward, distance to the tilt", flush=True)
        for method in given.methods or OWN:
            try_own(method, given.minutes, given.out)
        return
    print("method, best rate; rate: updates, reward, distance to the tilt", flush=True)
    for method in given.methods or ENTRANTS:
        rows = search(method, given.minutes, given.out)
        best = min(rows, key=lambda place: distance(rows[place]))
        edge = "" if best - 1 in rows and best + 1 in rows else " (at the edge)"
        cells = [shown(f"{LADDER[place]:g}", rows[place]) for place in sorted(rows)]
        print(f"{method}, {LADDER[best]:g}{edge}; {'; '.join(cells)}", flush=True)
        found = {f"{LADDER[place]:g}": row for place, row in rows.items()}
        write_whole(given.out / f"{method}.json", json.dumps(found, indent=1) + "\n")


def try_own(method: str, minutes: float, out: Path) -> None:
    """Run an entrant as it stands and with two values of its own setting; print the row."""
    setting, values = OWN[method]
    rate = ENTRANTS[method].learning_rate
    found = {"as it stands": run(method, rate, minutes, out)}
    for value in values:
        found[f"{value}"] = run(method, rate, minutes, out, f"{setting}={value}")
    cells = [shown(value, row) for value, row in found.items()]
    print(f"{method}, {setting}; {'; '.join(cells)}", flush=True)
    write_whole(out / f"{method}-own.json", json.dumps(found, indent=1) + "\n")


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


def run(method: str, rate: float, minutes: float, out: Path, change: str = "") -> dict[str, Any]:
    """The figures of one entrant at one rate, with one setting changed."""
    study = Changed(
        (method,),
        ("warmth",),
        out / f"{rate:g}" / change,
        seeds=1,
        first_seed=SEED,
        minutes=minutes,
        beta=4.0,
        learning_rate=rate,
        measurements=1,
        change=change,
    )
    shared, own = out / BANK, study.out / "warmth" / BANK
    if shared.is_file() and not own.is_file():
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared, own)
    with show() as progress:
        (outcome,) = race(study, progress)
    shutil.copyfile(own, shared)
    (row,) = [row for row in outcome.rows() if row["method"] == method]
    return dict(row)


def distance(row: dict[str, Any]) -> float:
    """To the tilt; a run that diverged is infinitely far."""
    found = row.get("distance_to_tilt", math.inf)
    return found if math.isfinite(found) else math.inf


def shown(value: str, row: dict[str, Any]) -> str:
    figures = row.get("updates", math.nan), row["reward_mean"], distance(row)
    return "{}: {:.0f}, {:.3f}, {:.3f}".format(value, *figures)


if __name__ == "__main__":
    main()
