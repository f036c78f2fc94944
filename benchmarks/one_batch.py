"""Reference and policy on the same states in one pass of the network, beside a pass of each.

    python benchmarks/one_batch.py

takes the embedded model with the demo's adapter and, in turns, in one process: a pass of the
reference and one of the policy, each on a batch of states; and one pass of twice as many rows, in
which each layer adds its adapter's output to the second half alone. It prints seconds of the
processor, one over two, and how far the predictions are apart. Peft has such a pass for inference
(`adapter_names`), and refuses it where gradients are wanted.
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
from sampling import prepared
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@contextmanager
def adapted_in_second_half(network: torch.nn.Module) -> Iterator[None]:
    """Within this context a layer's adapter acts on the second half of a batch."""
    layers: list[Any] = [part for part in network.modules() if isinstance(part, BaseTunerLayer)]

    def of(layer: Any) -> Callable[..., Tensor]:
        base = layer.get_base_layer()
        (name,) = layer.active_adapters
        down, up, scale = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]

        def forward(x: Tensor, *given: Any, **named: Any) -> Tensor:
            found = base(x, *given, **named)
            reference, policy = found.chunk(2)
            return torch.cat([reference, policy + scale * up(down(x.chunk(2)[1]))])

        return forward

    for layer in layers:
        layer.forward = of(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def ways(model: Any, prompts: list[str], n: int) -> dict[str, Callable[[], Pair]]:
    """By name: noise predictions of reference and policy on ``n`` states."""
    texts = [prompts[row % len(prompts)] for row in range(n)]
    x = torch.randn(n, *model.state_shape, generator=torch.Generator().manual_seed(0))
    k = torch.full((n,), model.process.steps // 2)
    single, double = model.condition(texts), model.condition(texts * 2)

    def by_two() -> Pair:
        with model.reference():
            reference = model.predict(x, k, single).epsilon
        return reference, model.predict(x, k, single).epsilon

    def by_one() -> Pair:
        with adapted_in_second_half(model.network):
            both = model.predict(torch.cat([x, x]), torch.cat([k, k]), double).epsilon
        reference, policy = both.chunk(2)
        return reference, policy

    return {"two": by_two, "one": by_one}


def timed(work: Callable[[], Pair], *, gradient: bool) -> tuple[Pair, float]:
    began = time.process_time()
    with torch.set_grad_enabled(gradient):
        found = work()
        if gradient:
            found[1].square().sum().backward()
    return (found[0].detach(), found[1].detach()), time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Reference and policy in one pass")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-one-batch.json"))
    given = parser.parse_args()
    parts, rows = prepared(), []
    print("| states | gradient | one pass over two | apart |")
    print("|---|---|---|---|")
    for n in given.rows:
        for gradient in (False, True):
            works = ways(parts.model, parts.prompts, n)
            first = {name: timed(work, gradient=gradient)[0] for name, work in works.items()}
            pairs = zip(first["one"], first["two"], strict=True)
            apart = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
            took: dict[str, list[float]] = {name: [] for name in works}
            for _ in range(given.repeats):
                for name, work in works.items():
                    took[name].append(timed(work, gradient=gradient)[1])
            ratio = [one / two for one, two in zip(took["one"], took["two"], strict=True)]
            rows.append({"n": n, "gradient": gradient, "ratio": ratio, "apart": apart, **took})
            told = f"{median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
            print(f"| {n} | {'yes' if gradient else 'no'} | {told} | {apart:.0e} |")
    print(f"load {os.getloadavg()[0]:.1f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
