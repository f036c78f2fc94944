"""Seconds from the command `nablaflow demo` to its first update, and where they go.

    python benchmarks/start.py

prints a table, the medians of some starts: seconds of the processor, and by the clock, from the
process's start on. It writes runs/benchmark-start.json. One start before them is not counted: it
compiles Python's code, which is done once for an installed package. The fit of the method's value,
which counts as training, is left out (`training.calibrate=false`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

STAGES = ("imports", "model and parts", "rehearsal", "guard's look", "to the first update")
WORK = ("prepare", "_rehearse", "_begin")  # of `nablaflow.runs.align`: what ends a stage


class FirstUpdate(BaseException):
    """It begins: all is known."""


def start_once(began: float, settings: list[str]) -> list[tuple[float, float]]:
    """Processor and clock seconds at the end of each stage of one start, in this process."""
    from nablaflow import cli
    from nablaflow.commands.shared import importing

    with importing():
        from nablaflow.commands import train  # noqa: F401
        from nablaflow.config import overrides  # noqa: F401
        from nablaflow.report import table  # noqa: F401
        from nablaflow.runs import align, trust  # noqa: F401
        from nablaflow.training.loop import Trainer

    seen: list[tuple[float, float]] = []

    def mark() -> None:
        seen.append((time.process_time(), time.monotonic() - began))

    def then_mark(work: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*given: Any, **named: Any) -> Any:
            found = work(*given, **named)
            mark()
            return found

        return marked

    def first_update(*_: Any) -> None:
        mark()
        raise FirstUpdate

    mark()
    for name in WORK:
        setattr(align, name, then_mark(getattr(align, name)))
    Trainer.step = first_update  # type: ignore[method-assign]
    sys.argv = ["nablaflow", "demo", *settings]
    try:
        cli.main()
    except FirstUpdate:
        return seen
    raise SystemExit("no update was begun")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-start.json"))
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        found = start_once(float(given.one[0]), given.one[1:])
        print(json.dumps(found), flush=True)
        os._exit(0)
    starts = [_start() for _ in range(1 + given.starts)][1:]
    print("| until the end of | processor | clock |\n|---|---|---|")
    found = {}
    for stage, times in zip(STAGES, zip(*starts, strict=True), strict=True):
        found[stage] = [median(values) for values in zip(*times, strict=True)]
        print(f"| {stage} | {found[stage][0]:.2f} | {found[stage][1]:.2f} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")


def _start() -> list[tuple[float, float]]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", str(time.monotonic())]
        command += [f"output_dir={folder}/run", "training.calibrate=false"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
