"""What an update needs, what it makes, and how fast: passes, decodes and FLOPs of each method.

    python benchmarks/update_cost.py

runs updates of each method on the embedded model with the demo's batches and prints a table; the
figures are in runs/benchmark-update-cost.json. *Needed* is what the method's formula has for an
update that makes a rollout; *made* is counted. A pass is of one state through the denoiser. The
rate is FLOPs made over seconds, beside that of a matrix product of the same machine at the same
moment, in the precision of the run.

    python benchmarks/update_cost.py --device cuda --model random:sd15 --precision bf16

is the same on a GPU, of another model: its rate in bf16 is that of matrices of 8,192 a side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.diffusion import Transitions
from nablaflow.methods import ResidualNablaDB
from nablaflow.models import DiffusionModel
from nablaflow.models.flops import counted
from nablaflow.runs.pretrained import DTYPES
from nablaflow.runs.setup import Parts, prepare


class Cost(NamedTuple):
    """Rows through the denoiser forward and backward, and through the decoder."""

    forward: int
    backward: int
    decode: int

    def times(self, rows: int) -> Cost:
        return Cost(*(rows * value for value in self))

    def plus(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class Formula(NamedTuple):
    """What a method needs besides the rollout.

    Attributes:
        transition: of each trained transition with k > 1, and ``last`` of one with k = 1.
        trajectory: of each trajectory, by the largest k that is trained of it.
    """

    transition: Cost
    last: Cost
    trajectory: Callable[[int], Cost] = lambda k: Cost(0, 0, 0)


FORMULAS = {
    # The reference and the policy at x_k; a gradient by the state, and one by the weights.
    "residual-nabla-db": Formula(Cost(2, 2, 1), Cost(2, 2, 1)),
    # The policy at x_{k-1} besides; gradients by x_k of both, by x_{k-1}, and by the weights.
    "published": Formula(Cost(3, 4, 2), Cost(2, 1, 1)),
    # The policy alone, by its state and by its weights; the reward at the end.
    "nabla-db": Formula(Cost(1, 2, 0), Cost(1, 2, 1)),
    # One reward gradient for the whole trajectory.
    "terminal": Formula(Cost(2, 1, 0), Cost(2, 1, 0), lambda k: Cost(0, 0, 1)),
    # And the reference's Jacobian at every step from x_1 up to what is trained.
    "adjoint-matching": Formula(Cost(2, 1, 0), Cost(2, 1, 0), lambda k: Cost(k - 1, k - 1, 1)),
}
METHODS: dict[str, dict[str, Any]] = {
    "residual-nabla-db": {"name": "residual-nabla-db"},
    "published": ResidualNablaDB.published(1.0, 0.0).model_dump_named(),
    "nabla-db": {"name": "nabla-db"},
    "terminal": {"name": "terminal"},
    "adjoint-matching": {"name": "adjoint-matching"},
}


class Passes:
    """Counts what passes a model from now on, in ``rows``."""

    def __init__(self, model: DiffusionModel) -> None:
        self.rows: Counter[str] = Counter()
        self._predict, self._decode = model.predict, model.decode
        model.predict, model.decode = self.predict, self.decode  # type: ignore[method-assign]

    def predict(self, x: Tensor, k: Tensor, condition: Any) -> Any:
        prediction = self._predict(x * 1.0, k, condition)  # * 1.0: a node that all comes back by
        self.rows["forward"] += len(x)
        if not prediction.epsilon.requires_grad:
            return prediction
        once = _Once(self.rows, len(x))
        return replace(prediction, x0_hat=once(prediction.x0_hat), epsilon=once(prediction.epsilon))

    def decode(self, x0: Tensor) -> Tensor:
        self.rows["decode"] += len(x0)
        return self._decode(x0)

    @property
    def cost(self) -> Cost:
        return Cost(self.rows["forward"], self.rows["backward"], self.rows["decode"])


class _Once:
    """Marks the outputs of one pass: a backward pass that enters by several of them is one."""

    def __init__(self, rows: Counter[str], each: int) -> None:
        self.rows, self.each, self.task = rows, each, -1

    def __call__(self, output: Tensor) -> Tensor:
        output.register_hook(self.enter)
        return output

    def enter(self, gradient: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        self.rows["backward"] += self.each if task != self.task else 0
        self.task = task


def needed(name: str, parts: Parts, trained: Transitions) -> Cost:
    """Of a whole update that trains these transitions: a rollout, its images, and the formula."""
    formula, k, owner = FORMULAS[name], trained.k, trained.trajectory
    last = int((k == 1).sum())
    total = formula.transition.times(len(k) - last).plus(formula.last.times(last))
    for trajectory in owner.unique():
        total = total.plus(Cost(parts.config.sampler.steps, 0, 1))
        total = total.plus(formula.trajectory(int(k[owner == trajectory].max())))
    return total


def made(parts: Parts) -> tuple[Cost, Transitions]:
    """By an update, and the transitions that it trained."""
    passes, batches = Passes(parts.model), parts.trainer.batches
    training_batch, trained = batches.training_batch, []

    def noted(*given: Any) -> Any:
        batch = training_batch(*given)
        trained.append(batch.transitions)
        return batch

    batches.training_batch = noted  # type: ignore[method-assign]
    parts.trainer.step()
    return passes.cost, trained[0]


def prepared(name: str, overrides: list[str]) -> Parts:
    values = {**demo_settings(), "method": {**METHODS[name], "beta": 4.0}}
    quiet = ["training.trackers=[]", "evaluation.bank=0", "guard=null"]
    config = parse_config(apply_overrides(values, [*quiet, *overrides]))
    return prepare(config, config.output_dir)


SIDE = {"cuda": 8192}
"""Of the matrices whose product is timed, by the device; small ones do not fill a GPU."""


def matrix_rate(
    device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5
) -> float:
    """FLOPs a second of a matrix product in a precision, the best of some tries.

    Args:
        size: rows and columns; None: as many as the device needs to show its rate.
    """
    size = size or SIDE.get(device.type, 1024)
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        began = clock(device)
        a @ a
        best = min(best, clock(device) - began)
    return 2 * size**3 / best


def clock(device: torch.device) -> float:
    """Seconds, once a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(name: str, overrides: list[str]) -> dict[str, Any]:
    """GFLOP and seconds are means over the updates that share a rollout, its own part in them."""
    parts = prepared(name, overrides)
    device, updates = parts.model.device, parts.config.updates_per_rollout
    with counted() as flops:
        steps(parts, updates)
    began = clock(device)
    steps(parts, updates)
    seconds = (clock(device) - began) / updates
    peak = matrix_rate(device, DTYPES[parts.config.training.precision])
    found, trained = made(parts)  # by the first of the next, which makes a rollout
    each = flops.total / updates
    return {
        "needed": needed(name, parts, trained)._asdict(),
        "made": found._asdict(),
        "gflop": each / 1e9,
        "seconds": seconds,
        "rate_gflops": each / seconds / 1e9,
        "matrix_gflops": peak / 1e9,
    }


def steps(parts: Parts, updates: int) -> None:
    for _ in range(updates):
        parts.trainer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description="What an update needs and makes")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=list(DTYPES), default="float32")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-update-cost.json"))
    parser.add_argument("settings", nargs="*", help="key.sub=value")
    given = parser.parse_args()
    own = [f"model={given.model}", f"training.device={given.device}"]
    own += [f"training.precision={given.precision}", *given.settings]
    found = {}
    print(
        "| method | passes forward, backward, decodes: needed | made | GFLOP | GFLOP/s | product "
        "| share |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in given.methods:
        found[name] = row = measure(name, own)
        needs, makes = (", ".join(map(str, row[what].values())) for what in ("needed", "made"))
        rates = f"{row['gflop']:.0f} | {row['rate_gflops']:.1f} | {row['matrix_gflops']:.1f}"
        share = row["rate_gflops"] / row["matrix_gflops"]
        print(f"| {name} | {needs} | {makes} | {rates} | {share:.0%} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
