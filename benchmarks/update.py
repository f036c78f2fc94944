"""Seconds of one update of the demo, and what each choice for speed is worth.

    python benchmarks/update.py

prints a table and writes runs/benchmark-update.json. Each variant runs in a process of its own, so
that none inherits another's memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

VARIANTS = {
    "the demo's": [],
    "the C library's default allocator": ["--plain-allocator"],
    "20 steps": ["sampler.steps=20"],
    "20 steps, the C library's default allocator": ["--plain-allocator", "sampler.steps=20"],
    "with flow network and reverse residual": [
        "flow={channels: [64, 128]}",
        "method.step=published",
        "method.reverse_weight=1",
    ],
    "the policy's own x0_hat": ["method.forward_looking_predictor=policy"],
}


def measure(updates: int, overrides: list[str], plain_allocator: bool) -> dict[str, float]:
    """Median seconds of an update and of its rollout; the first two updates are not counted."""
    from nablaflow.config.defaults import demo_settings
    from nablaflow.config.overrides import apply_overrides
    from nablaflow.config.parse import parse_config
    from nablaflow.runs import accelerator, setup

    if plain_allocator:
        accelerator.keep_freed_memory = lambda: False
    quiet = ["training.trackers=[]", "evaluation.bank=0"]
    config = parse_config(apply_overrides(demo_settings(), [*quiet, *overrides]))
    trainer = setup.prepare(config, config.output_dir).trainer
    records = [trainer.step() for _ in range(updates + 2)][2:]
    return {name: median(r[name] for r in records) for name in ("seconds", "rollout_seconds")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-update.json"))
    parser.add_argument("--plain-allocator", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(given.updates, given.one, given.plain_allocator)))
        return
    found = {}
    print("| variant | seconds an update | of these the rollout |\n|---|---|---|")
    for name, settings in VARIANTS.items():
        plain = [part for part in settings if part.startswith("--")]
        rest = [part for part in settings if not part.startswith("--")]
        command = [sys.executable, __file__, "--updates", str(given.updates), *plain, "--one"]
        done = subprocess.run([*command, *rest], check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {found[name]['seconds']:.2f} | {found[name]['rollout_seconds']:.2f} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
