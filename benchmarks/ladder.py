"""From the published form of residual nabla-DB to the default, one change at a time, on images.

    python benchmarks/ladder.py warmth preference --updates 30

Each rung keeps the changes above it, and everything else is the demo's: adapter, optimizer, batch.
Prints a row for each, and writes all to benchmarks/ladder.json: closed of the way, distance to the
tilt, diversity over the tilt's, seconds of the processor in training. What is there already is not
run again.

``--rungs published-50`` is the published form with its own number of steps (50), beta (1e4) and
output regularisation (2e3, of the aesthetic run), judged against the same tilt.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from pathlib import Path

from error_budget import Figures, Judge, merged, prepared, trained_states

from nablaflow.methods import ResidualNablaDB

PUBLISHED: Figures = {
    "training": {"steps_per_rollout": 2, "data": "previous-rollout"},
    "method": ResidualNablaDB.published(1.0, 0.0).model_dump(
        exclude_unset=True, exclude={"beta", "output_regularization"}
    ),
}
CHANGES: dict[str, Figures] = {
    "published": {},
    "on-policy": {"training": {"steps_per_rollout": 1, "data": "on-policy"}},
    "weighting sigma2": {"method": {"weighting": "sigma2"}},
    "detached flow": {"method": {"forward_flow": "detached-ema"}},
    "reference looks ahead": {"method": {"forward_looking_predictor": "reference"}},
    "no flow network": {"method": {"reverse_weight": 0.0, "reverse_last": True}},
    "gamma one": {"method": {"gamma": "one", "always_last": False}},
    "exact step": {"method": {"step": "exact", "weighting": "nats"}},
}
"""What each rung changes of the one above it; the last one is the default."""

FIFTY: Figures = {
    "sampler": {"steps": 50},
    "training": {"transition_fraction": 0.04},
    "evaluation": {"bank": 3072},
}
OWN: Figures = {"method": {"beta": 1e4, "output_regularization": 2e3}}


def rungs() -> dict[str, Figures]:
    """All changes up to each rung, by name."""
    found, so_far = {}, PUBLISHED
    for name, change in CHANGES.items():
        so_far = merged(so_far, change)
        found[name] = so_far
    return found


def climbed(judge: Judge, case: str, changes: Figures, updates: int, seed: int) -> Figures:
    """What a rung reaches."""
    parts = prepared(case, seed, updates, changes)
    begun, seconds = time.process_time(), 0.0
    for update in range(updates):
        record = parts.trainer.step()
        seconds = time.process_time() - begun
        print(f"update {update + 1}, {seconds:.0f} s: {record['reward_mean']:.3f}", flush=True)
    return judge.figures(trained_states(parts)) | {"seconds": seconds}


@cache
def judge_of(case: str, n: int, fifty: bool) -> Judge:
    changes = merged({"evaluation": {"n": n}}, FIFTY if fifty else {})
    return Judge.of(prepared(case, 0, 1, changes))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="+", help="as in error_budget.py")
    parser.add_argument("--rungs", nargs="+", default=list(CHANGES))
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--n", type=int, default=256, help="images that are judged")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    kept = json.loads(given.out.read_text()) if given.out.is_file() else {}
    known = rungs() | {"published-50": merged(merged(PUBLISHED, FIFTY), OWN)}
    for case in given.cases:
        for name in given.rungs:
            for seed in given.seeds:
                key = f"{case}, {name}, {given.updates} updates, seed {seed}"
                if key not in kept:
                    judge = judge_of(case, given.n, name == "published-50")
                    changes = merged({"evaluation": {"n": given.n}}, known[name])
                    kept[key] = climbed(judge, case, changes, given.updates, seed)
                    given.out.write_text(json.dumps(kept, indent=1) + "\n")
                figures = "; ".join(f"{what} {value:.3f}" for what, value in kept[key].items())
                print(f"{key}: {figures}", flush=True)


if __name__ == "__main__":
    main()
