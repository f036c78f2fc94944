"""An aligned flow model sampled by its run's own steps and by the plain Euler ODE.

    python benchmarks/flow_sampling.py runs/flow-0 runs/flow-1

Of the reference and of the policy, by either sampler, from the same noise: the mean of the run's
reward with its standard error within prompts, and the mean distance of two images of a prompt,
as means over 8 x 8 pixels. A line of JSON each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow.evaluation.bank import sample_states, spread
from nablaflow.prompts.sets import load_prompts
from nablaflow.rewards import load
from nablaflow.runs.policy import LAST, REFERENCE, load_policy

BATCH = 64


def figures(images: Tensor, rewards: Tensor, index: Tensor) -> dict[str, float]:
    small = torch.nn.functional.avg_pool2d(images, 8).flatten(1)
    groups = [index == k for k in index.unique()]
    variance = sum(rewards[rows].var() / rows.sum() for rows in groups)
    within = torch.stack([torch.pdist(small[rows]).mean() for rows in groups])
    return {
        "reward": rewards.mean().item(),
        "reward_se": (torch.as_tensor(variance).sqrt() / len(groups)).item(),
        "diversity": within.mean().item(),
    }


@torch.no_grad()
def measure(run: Path, checkpoint: str, sampler: str | None, n: int) -> dict[str, Any]:
    model, config, _ = load_policy(run, checkpoint=checkpoint, sampler=sampler, trusted=True)
    prompts = load_prompts(config.prompts, Path(), config.seed)
    states = sample_states(
        model, prompts, n, seed=0, batch=BATCH, purpose="policy", on_progress=lambda done: None
    )
    index = spread(n, len(prompts))
    texts = [prompts[k] for k in index.tolist()]
    images = torch.cat([model.decode(part) for part in states.split(BATCH)])
    name = sampler or config.sampler.name
    row = {"run": str(run), "model": checkpoint, "sampler": name, "n": n}
    return row | figures(images, load(config.reward)(images, texts), index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--n", type=int, default=512)
    given = parser.parse_args()
    for run in given.runs:
        for checkpoint in (REFERENCE, LAST):
            for sampler in (None, "euler"):
                print(json.dumps(measure(run, checkpoint, sampler, given.n)), flush=True)


if __name__ == "__main__":
    main()
