"""What an update costs by the number of processes: a model fitted on 1 and 2, and held against 4.

    python benchmarks/scaling.py

prints tables and writes runs/benchmark-scaling.json. The clock is each process's processor time,
which does not count other work on the machine nor the wait for other processes; it is the slowest
process's that counts, since the others wait for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

FITTED, HELD_OUT = (1, 2), (4,)
RECIPES = {
    "residual-nabla-db, 32 trajectories": [],
    "nabla-td, 32 trajectories": ["method=nabla-td"],
    "residual-nabla-db, all weights": ["adapter.kind=full", "optimizer.learning_rate=1e-5"],
}


# --- one process ----------------------------------------------------------------------------------


def measure(updates: int, overrides: list[str]) -> dict[str, float] | None:
    """Median processor seconds of an update's parts, of the slowest process; None on the others.

    Of updates that share a rollout the mean counts as one; the first of these is left out.
    """
    from accelerate.utils import gather_object

    from nablaflow.config.defaults import demo_settings
    from nablaflow.config.overrides import apply_overrides
    from nablaflow.config.parse import parse_config
    from nablaflow.runs import setup

    quiet = ["training.trackers=[]", "evaluation.bank=0", "guard=null", "training.device=cpu"]
    config = parse_config(apply_overrides(demo_settings(), [*quiet, *overrides]))
    parts = setup.prepare(config, config.output_dir)
    trainer = parts.trainer
    trainer.clock = time.process_time
    each = config.updates_per_rollout
    rounds = [[trainer.step() for _ in range(each)] for _ in range(1 + -(-updates // each))][1:]
    own = []
    for records in rounds:
        rollout = fmean(record["rollout_seconds"] for record in records)
        estimate = fmean(record.get("estimate_seconds", 0.0) for record in records)
        rest = fmean(record["seconds"] for record in records) - rollout - estimate
        own.append({"rollout": rollout, "estimate": estimate, "gradient and step": rest})
    found: list[list[dict[str, float]]] = gather_object([own])
    main = parts.accelerator.is_main_process
    parts.accelerator.end_training()
    if not main:
        return None
    slowest = [
        {k: max(row[k] for row in rows) for k in rows[0]} for rows in zip(*found, strict=True)
    ]
    return {name: median(row[name] for row in slowest) for name in slowest[0]}


def launched(processes: int, updates: int, overrides: list[str]) -> dict[str, float]:
    """`measure` in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", __file__, f"--updates={updates}", "--one", str(out)),
            *overrides,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


# --- the model ------------------------------------------------------------------------------------


def fit(measured: dict[int, float]) -> tuple[float, float]:
    """Seconds that every process spends, and seconds that they divide: t(P) = a + b / P."""
    one, two = (measured[count] for count in FITTED)
    divided = 2.0 * (one - two)
    return one - divided, divided


def table(name: str, measured: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """Print what was measured and what the model says; the rows."""
    print(f"\n{name}\n\n| part | a, s | b, s | P = 1 | P = 2 | P = 4, predicted | measured |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for part in measured[1]:
        seconds = {count: found[part] for count, found in measured.items()}
        if not any(seconds.values()):
            continue
        same, divided = fit(seconds)
        said = same + divided / HELD_OUT[0]
        rows.append({"part": part, "a": same, "b": divided, "predicted": said, "seconds": seconds})
        shown = (same, divided, seconds[1], seconds[2], said, seconds[4])
        print(f"| {part} | " + " | ".join(f"{value:.3f}" for value in shown) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--recipes", type=int, default=len(RECIPES), help="the first so many")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-scaling.json"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given, overrides = parser.parse_known_args()
    if given.one is not None:
        found = measure(given.updates, overrides)
        if found is not None:
            given.one.write_text(json.dumps(found))
        return
    results = {}
    for name, settings in list(RECIPES.items())[: given.recipes]:
        by_count = {
            count: launched(count, given.updates, settings) for count in (*FITTED, *HELD_OUT)
        }
        results[name] = table(name, by_count)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
