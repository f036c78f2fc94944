"""The demo over several seeds: how near it comes to the exact tilt, and what it costs.

    python benchmarks/demo.py --seeds 0 1 2

writes a run folder for each seed below runs/benchmark-demo, skips those that are finished, and
prints the table of docs/benchmarks.md; the figures are in demo.json beside the runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

Figures = dict[str, float]


def run(seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The summary of the demo with a seed, for training and evaluation alike."""
    summary = folder / "summary.json"
    if not summary.is_file():
        settings = [f"seed={seed}", f"evaluation.seed={seed + 1}", f"output_dir={folder}"]
        command = [sys.executable, "-m", "nablaflow", "demo", *settings, *overrides]
        subprocess.run([*command, "--overwrite"], check=True)
    return json.loads(summary.read_text())


def figures(summary: dict[str, Any]) -> Figures:
    reference, policy, tilt = (summary[name] for name in ("reference", "policy", "exact_tilt"))
    fall = 1 - policy["distance_to_tilt"] / reference["distance_to_tilt"]
    return {
        "reward of the reference": reference["reward_mean"],
        "reward, aligned": policy["reward_mean"],
        "reward of the exact tilt": tilt["reward_mean"],
        "strength after calibration": (summary.get("calibrated") or {}).get("strength", 1.0),
        "closed of the way": summary["closing"],
        "its standard error": summary["closing_se"],
        "diversity, aligned over exact tilt": policy["diversity"] / tilt["diversity"],
        "distance to the tilt, reference": reference["distance_to_tilt"],
        "distance to the tilt, aligned": policy["distance_to_tilt"],
        "its standard error, aligned": policy["distance_to_tilt_se"],
        "distance to the tilt, fall": fall,
        "effective sample size, least of the prompts": summary["effective_sample_size"],
        "minutes": summary["seconds"] / 60,
        "peak memory, GB": summary["peak_rss_mb"] / 1024,
    }


def table(found: dict[int, Figures]) -> str:
    head = "| | " + " | ".join(f"seed {seed}" for seed in found) + " | mean |"
    lines = [head, "|---" * (len(found) + 2) + "|"]
    for name in next(iter(found.values())):
        values = [part[name] for part in found.values()]
        cells = [f"{value:.3g}" for value in (*values, mean(values))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-demo"))
    parser.add_argument("overrides", nargs="*", help="settings as for nablaflow demo, after --")
    given = parser.parse_args()
    found = {
        seed: figures(run(seed, given.out / f"seed-{seed}", given.overrides))
        for seed in given.seeds
    }
    (given.out / "demo.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
