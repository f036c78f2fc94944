"""What it costs that threads wait for each other asleep, or awake: alone, and beside other work.

    python benchmarks/waiting_threads.py --beside 0 4

times the gradient of a log flow's kind of network, two threads that wait awake for libgomp's own
number of turns, for fewer, and for none; each in a process of its own, beside so many others that
do the same on one thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

WORK = """
import sys, time
import torch
from torch import nn
from torch.nn.functional import silu

threads, rounds = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
convolution, norm = nn.Conv2d(48, 48, 3, padding=1), nn.GroupNorm(8, 48)
x = torch.randn(96, 48, 8, 8)

def once():
    y = x
    for _ in range(4):
        y = silu(norm(convolution(y)))
    torch.autograd.grad(y.sum(), convolution.weight)

once()
print("ready", flush=True)
begun = time.perf_counter()
while rounds:
    once()
    rounds -= 1
print(time.perf_counter() - begun)
"""
ROUNDS = 60


def begin(threads: int, rounds: int, spins: int | None = None) -> subprocess.Popen[str]:
    """A process that has begun its work."""
    own = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    own |= {"GOMP_SPINCOUNT": str(spins)} if spins is not None else {}
    command = [sys.executable, "-c", WORK, str(threads), str(rounds)]
    made = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    made.stdout.readline()
    return made


def seconds(spins: int | None) -> float:
    made = begin(2, ROUNDS, spins)
    told, _ = made.communicate()
    return float(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    for beside in asked.beside:
        others = [begin(1, -1) for _ in range(beside)]
        try:
            for spins in (None, 10_000, 1_000, 0):
                found = sorted(seconds(spins) for _ in range(asked.repeats))
                times = ", ".join(f"{time:.2f}" for time in found)
                print(f"beside {beside}, {'own' if spins is None else spins} turns: {times} s")
        finally:
            for other in others:
                other.kill()
                other.wait()


if __name__ == "__main__":
    main()
