"""Whether the aligned digits are the tilt's: shares of the ten classes, by the shipped reader.

    python benchmarks/digit_classes.py --seeds 0 1 2

trains the case ``digits`` of error_budget.py and prints half the sum of the classes' absolute
differences (total variation) from the tilt's shares, which are the reference bank's reweighted by
exp(beta r): of the reference, of the aligned model, and the floor, what as many samples drawn from
the reweighted bank itself have on average.
"""

from __future__ import annotations

import argparse

import torch
from error_budget import MODELS, prepared, trained_states
from safetensors.torch import load_file
from torch import Tensor

from nablaflow.evaluation.bank import reference_bank, sample_states
from nablaflow.models.pipelines import PipelineModel
from nablaflow.runs.setup import Parts

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=60)
    given = parser.parse_args()
    for seed in given.seeds:
        parts = prepared("digits", seed, given.updates)
        settings, bank = parts.config.evaluation, bank_of(parts)
        weights, classes = tilts_weights(parts, bank), read(parts.model, bank)
        tilt, generator = shares(classes, weights), torch.Generator().manual_seed(seed)
        draws = torch.multinomial(weights, DRAWS * settings.n, True, generator=generator)
        floor = [apart(shares(classes[rows]), tilt) for rows in draws.reshape(DRAWS, -1)]
        for _ in range(given.updates):
            parts.trainer.step()
        with parts.model.reference():
            before = sample_states(
                parts.model,
                parts.evaluated,
                settings.n,
                seed=settings.seed,
                batch=settings.batch,
                purpose="evaluation",
                on_progress=lambda done: None,
            )
        after = shares(read(parts.model, trained_states(parts)))
        print(
            f"seed {seed}: reference {apart(shares(read(parts.model, before)), tilt):.3f}, aligned "
            f"{apart(after, tilt):.3f}, floor {sum(floor) / DRAWS:.3f} (19 of 20 below "
            f"{sorted(floor)[int(0.95 * DRAWS)]:.3f})"
        )
        print("  tilt    " + " ".join(f"{100 * share:5.1f}" for share in tilt.tolist()))
        print(
            "  aligned " + " ".join(f"{100 * share:5.1f}" for share in after.tolist()), flush=True
        )


if __name__ == "__main__":
    main()
