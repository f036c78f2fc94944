"""Whether the aligned digits are the tilt's: shares of the ten classes, by the shipped reader.

    python benchmarks/digit_classes.py runs/upper-0 runs/upper-1 runs/upper-2

reads finished runs of the case ``digits`` (the command is in docs/benchmarks.md, "Elsewhere") and
prints half the sum of the classes' absolute differences (total variation) from the tilt's shares,
which are the reference bank's reweighted by exp(beta r): of the reference, of the aligned model,
and the floor, what as many samples drawn from the reweighted bank itself have on average.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml
from error_budget import MODELS, prepared, trained_states
from safetensors.torch import load_file
from torch import Tensor

from nablaflow.evaluation.bank import reference_bank
from nablaflow.evaluation.policy_state import LastPolicy
from nablaflow.models.pipelines import PipelineModel
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import list_checkpoints

CLASSES, DRAWS = 10, 200


def read(model: PipelineModel, states: Tensor) -> Tensor:
    """The class of each, by a linear reader of the pixels in [-1, 1]."""
    weights = load_file(MODELS / "digits" / "classifier.safetensors")
    pixels = model.decode(states.float()).mean(1).flatten(1) * 2.0 - 1.0
    return (pixels @ weights["weight"].T + weights["bias"]).argmax(1)


def shares(classes: Tensor, weights: Tensor | None = None) -> Tensor:
    counts = torch.bincount(classes, weights, minlength=CLASSES).double()
    return counts / counts.sum()


def apart(first: Tensor, second: Tensor) -> float:
    """Total variation between two rows of shares."""
    return 0.5 * (first - second).abs().sum().item()


def bank_of(parts: Parts) -> Tensor:
    settings = parts.config.evaluation
    return reference_bank(
        parts.model,
        parts.fingerprint,
        parts.evaluated,
        parts.config.sampler,
        settings.bank,
        batch=settings.batch,
        on_progress=lambda done: None,
    )


@torch.no_grad()
def tilts_weights(parts: Parts, bank: Tensor) -> Tensor:
    images = parts.model.decode(bank.float())
    rewards = parts.reward(images, [parts.evaluated[0]] * len(bank))
    return torch.softmax(parts.trainer.method.beta * rewards.double(), 0)


def judge(folder: Path) -> None:
    checkpoint = list_checkpoints(folder)[-1]
    seed = yaml.safe_load((folder / "config.yaml").read_text())["seed"]
    parts = prepared("digits", seed, 1)
    bank = bank_of(parts)
    weights, classes = tilts_weights(parts, bank), read(parts.model, bank)
    tilt, generator = shares(classes, weights), torch.Generator().manual_seed(seed)
    n = parts.config.evaluation.n
    draws = torch.multinomial(weights, DRAWS * n, True, generator=generator).reshape(DRAWS, n)
    floor = sorted(apart(shares(classes[rows]), tilt) for rows in draws)
    with parts.model.reference():
        before = shares(read(parts.model, trained_states(parts)))
    LastPolicy.read(checkpoint).put(parts.model.network, parts.config.model)
    after = shares(read(parts.model, trained_states(parts)))
    print(
        f"{folder}: reference {apart(before, tilt):.3f}, aligned {apart(after, tilt):.3f}, "
        f"floor {sum(floor) / DRAWS:.3f} (19 of 20 below {floor[int(0.95 * DRAWS)]:.3f})"
    )
    for name, found in (("tilt", tilt), ("aligned", after)):
        print(f"  {name:<8}" + " ".join(f"{100 * share:5.1f}" for share in found.tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    for folder in parser.parse_args().runs:
        judge(folder)


if __name__ == "__main__":
    main()
