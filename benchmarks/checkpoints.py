"""What a checkpoint costs: its checksums, and the wait for the disk.

    python benchmarks/checkpoints.py [FOLDER]

Saves 15 checkpoints of two sizes in FOLDER, with the wait (fsync) and without, and prints medians:
seconds on the clock, and of the processor.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from nablaflow.storage.checkpoint import Checkpoint, save_checkpoint
from nablaflow.storage.manifest import list_checkpoints

SIZES = {"2.4 MB": 20_000, "48 MB": 400_000}  # numbers in each of 30 tensors
REPEATS = 15


def example(numbers: int) -> Checkpoint:
    """A policy of 10 tensors and an optimizer with two moments of each."""
    policy = {f"layer-{i}": torch.randn(numbers) for i in range(10)}
    moments = {i: {"m": torch.randn(numbers), "v": torch.randn(numbers)} for i in range(10)}
    return Checkpoint(1, 1.0, {"policy": policy}, {"optimizer": moments}, "seed: 0\n" * 100)


def measure(folder: Path, checkpoint: Checkpoint) -> tuple[float, float]:
    """Median seconds of a save, on the clock and of the processor."""
    clock, processor = [], []
    for update in range(REPEATS):
        started = time.perf_counter(), time.process_time()
        save_checkpoint(folder, replace(checkpoint, update=update), keep=2)
        clock.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    return statistics.median(clock), statistics.median(processor)


def main() -> None:
    """Print a line for each size, with and without the wait."""
    place = sys.argv[1] if len(sys.argv) > 1 else None
    fsync = os.fsync
    with tempfile.TemporaryDirectory(dir=place) as folder:
        for name, numbers in SIZES.items():
            for what, wait in (("with fsync", fsync), ("without", lambda number: None)):
                os.fsync = wait
                clock, processor = measure(Path(folder), example(numbers))
                print(f"{name}, {what}: {clock:.3f} s, processor {processor:.3f} s")
            kept = list_checkpoints(Path(folder))
            assert len(kept) == 2, kept


if __name__ == "__main__":
    main()
