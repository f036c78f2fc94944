"""What sampling the embedded model costs in other ways: adapter merged, bfloat16, compiled blocks.

    python benchmarks/sampling.py

samples the demo's rollout by each way in turns, in one process, and prints seconds of the processor
over those of the policy as it is sampled, how far the clean states are from its, and what the
first call costs besides. Not all of it is a setting: docs/benchmarks.md says what was left out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.diffusion import trajectory_noise
from nablaflow.runs.setup import Parts, prepare

MOVED = 0.02  # standard deviation of what is added to the adapter: an untouched one is nothing


def prepared() -> Parts:
    """The demo, with an adapter that does something."""
    quiet = ["training.trackers=[]", "evaluation.bank=0", "guard=null"]
    config = parse_config(apply_overrides(demo_settings(), quiet))
    parts = prepare(config, config.output_dir)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parts.model.network.parameters():
            if parameter.requires_grad:
                parameter += MOVED * torch.randn(parameter.shape, generator=generator)
    return parts


@contextmanager
def merged(network: torch.nn.Module) -> Iterator[None]:
    """The adapter's product added to the weights."""
    layers: list[Any] = [part for part in network.modules() if isinstance(part, BaseTunerLayer)]
    for layer in layers:
        layer.merge()
    yield
    for layer in layers:
        layer.unmerge()


def rollout(parts: Parts, n: int) -> Callable[[], Tensor]:
    prompts = [parts.prompts[row % len(parts.prompts)] for row in range(n)]
    return lambda: parts.model.sample(prompts, trajectory_noise(list(range(n)))).x0


def ways(n: int) -> dict[str, Callable[[], Tensor]]:
    """By name; the first is the one that the others are held to."""
    parts, compiled = prepared(), prepared()
    network: Any = compiled.model.network
    network.compile_repeated_blocks(dynamic=False)
    plain = rollout(parts, n)

    def by_merged() -> Tensor:
        with merged(parts.model.network):
            return plain()

    def in_bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain()

    return {
        "as it is": plain,
        "adapter merged": by_merged,
        "autocast to bfloat16": in_bf16,
        "compiled blocks": rollout(compiled, n),
    }


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.process_time()
    with torch.no_grad():
        found = work()
    return found, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="What sampling costs in other ways")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-sampling.json"))
    given = parser.parse_args()
    works = ways(given.n)
    first = {name: timed(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.repeats):
        for name, work in works.items():
            seconds[name].append(timed(work)[1])
    base = first["as it is"][0]
    rows = {}
    print("| way | seconds over those as it is | states apart | first call besides, seconds |")
    print("|---|---|---|---|")
    for name, took in seconds.items():
        ratio = [own / plain for own, plain in zip(took, seconds["as it is"], strict=True)]
        apart = ((first[name][0] - base).norm() / base.norm()).item()
        besides = first[name][1] - median(took)
        rows[name] = {"seconds": took, "ratio": ratio, "apart": apart, "first": besides}
        told = f"{median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
        print(f"| {name} | {told} | {apart:.1e} | {besides:.1f} |")
    load = os.getloadavg()[0]
    print(f"load {load:.1f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"ways": rows, "load": load}, indent=2) + "\n")


if __name__ == "__main__":
    main()
