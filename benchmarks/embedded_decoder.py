"""Rewards' gradients through another decoder of the embedded models beside those through their own.

    python benchmarks/embedded_decoder.py
    python benchmarks/embedded_decoder.py training.decoder_precision=bf16

takes x0_hat on trajectories of the embedded model's reference, which no decoder was trained on, at
several noise levels, and prints the cosine of the two gradients by the state (median and lower
tenth; of all states' gradients as one), the median ratio of their norms, and FLOPs of both.
`--model flow` is the other embedded model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.diffusion import trajectory_noise
from nablaflow.models.flops import counted
from nablaflow.rewards import NamedReward, load
from nablaflow.runs.setup import Parts, prepare

REWARDS = ("warmth", "preference", "benchmarks/error_budget.py:hue")
QUIET = ("training.trackers=[]", "evaluation.bank=0", "guard=null", "method.value=forward-looking")


def prepared(model: str, *changed: str) -> Parts:
    settings = [*QUIET, f"model={model}", *changed]
    config = parse_config(apply_overrides(demo_settings(), settings))
    return prepare(config, config.output_dir)


@torch.no_grad()
def states(parts: Parts, n: int, seed: int) -> dict[int, Tensor]:
    """X0_hat of trajectories of the reference, by k."""
    model, prompts = parts.model, texts(parts, n)
    noise = trajectory_noise(range(seed, seed + n))
    with model.reference():
        found = model.sample(prompts, noise, keep_states=True)
        assert found.states is not None
        return {
            k: model.predict(found.states[k], torch.full((n,), k), model.condition(prompts)).x0_hat
            for k in levels(model.process.steps)
        }


def levels(steps: int) -> list[int]:
    return sorted({1, steps // 4, steps // 2, 3 * steps // 4, steps})


def texts(parts: Parts, n: int) -> list[str]:
    return [parts.prompts[index % len(parts.prompts)] for index in range(n)]


def gradient(parts: Parts, reward: NamedReward, x0: Tensor) -> Tensor:
    leaf = x0.clone().requires_grad_()
    images = parts.model.decode_for_gradient(leaf)
    return torch.autograd.grad(reward(images, texts(parts, len(x0))).sum(), leaf)[0].flatten(1)


def compared(full: Tensor, other: Tensor) -> dict[str, float]:
    cosine = torch.cosine_similarity(full, other)
    ratio = other.norm(dim=1) / full.norm(dim=1)
    return {
        "cosine": float(cosine.median()),
        "cosine_of_all": float(torch.cosine_similarity(full.flatten(), other.flatten(), dim=0)),
        "cosine_lower_tenth": float(cosine.quantile(0.1)),
        "ratio": float(ratio.median()),
    }


def gflop(parts: Parts, x0: Tensor) -> float:
    """Of one row, forward and backward."""
    with counted() as flops:
        leaf = x0[:1].clone().requires_grad_()
        parts.model.decode_for_gradient(leaf).sum().backward()
    return flops.total / 1e9


def measure(given: argparse.Namespace) -> dict[str, Any]:
    full, other = prepared(given.model), prepared(given.model, given.setting)
    x0 = states(full, given.n, given.seed)
    found: dict[str, Any] = {"gflop": [gflop(parts, x0[1]) for parts in (full, other)]}
    for name in REWARDS:
        reward = load(name)
        found[name] = {
            k: compared(gradient(full, reward, x), gradient(other, reward, x))
            for k, x in x0.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The embedded small decoder's gradients")
    parser.add_argument("setting", nargs="?", default="training.decoder=tiny")
    parser.add_argument("--model", choices=("nano", "flow"), default="nano")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-embedded-decoder.json"))
    given = parser.parse_args()
    found = measure(given)
    costs = found["gflop"]
    print(f"GFLOP a row, forward and backward: {costs[0]:.3f}, {given.setting} {costs[1]:.3f}\n")
    steps = list(found["warmth"])
    print("| reward | " + " | ".join(f"k = {k}" for k in steps) + " |")
    print("|---" * (len(steps) + 1) + "|")
    for name in REWARDS:
        cells = [
            f"{row['cosine']:.2f} ({row['cosine_lower_tenth']:.2f}), {row['cosine_of_all']:.2f}, "
            f"{row['ratio']:.2f}"
            for row in found[name].values()
        ]
        print(f"| {name.split(':')[-1]} | " + " | ".join(cells) + " |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
