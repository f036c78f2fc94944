"""What a fitted value reaches without any training, by how strongly it pulls.

    python benchmarks/fitted_target.py warmth hue symmetry --strengths 1 1.5 2

fits the value of `method.value: contrastive` as a run of the demo does, and samples the untrained
reference with s c_k grad V_k in the means of its kernels: closed of the way, distance to the exact
tilt, diversity over the tilt's, for each strength s. What a policy that follows its target to the
last would be, and at which strength it would be at the tilt. The cases are those of
error_budget.py, and the rewards `contrast` and `symmetry` at the beta that ``auto`` gives them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from error_budget import CASES, Judge, prepared
from torch import Tensor

from nablaflow.diffusion import trajectory_noise, value_step
from nablaflow.diffusion.process import at
from nablaflow.methods.guided_sampling import guided_mean
from nablaflow.runs.setup import Parts

BATCH = 64
CASES["contrast"] = ({"reward": "contrast", "method": {"beta": 13.0}}, None)
CASES["symmetry"] = ({"reward": "symmetry", "method": {"beta": 54.0}}, None)


@torch.no_grad()
def pulled(parts: Parts, prompts: list[str], seeds: list[int], strength: float) -> Tensor:
    """States of the reference whose kernels the fitted value moves, so many times."""
    model, networks = parts.model, parts.trainer.networks
    fit, generators = networks.fitted_value, trajectory_noise(seeds)
    scale = strength * value_step("exact", model.process).scale
    trust = parts.config.method.beta * fit.gamma
    condition = model.condition(prompts)

    def noise() -> Tensor:
        shape = (len(prompts), *model.state_shape)
        return randn_tensor(shape, generators, model.device, torch.float32)

    x = noise()
    for step in range(model.process.steps, 0, -1):
        k = torch.full((len(prompts),), step, device=x.device)
        mean = guided_mean(networks, x, k, condition, prompts, trust, scale)
        flow = at(scale, k, x) * fit.score(model, x, k, condition)
        x = mean + flow + at(model.process.sigma, k, x) * noise()
    return x


def states(parts: Parts, n: int, strength: float) -> Tensor:
    prompts = [parts.evaluated[row % len(parts.evaluated)] for row in range(n)]
    rows = [range(start, min(n, start + BATCH)) for start in range(0, n, BATCH)]
    return torch.cat(
        [pulled(parts, prompts[r.start : r.stop], list(r), strength).float() for r in rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="case")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    parser.add_argument("--n", type=int, default=512, help="images at each strength")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fitted-target.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for case in given.cases:
        parts = prepared(case, given.seed, 1, {"method": {"value": "contrastive"}})
        judge = Judge.of(parts)
        parts.trainer.begin(lambda what, total: lambda done: None)
        for strength in given.strengths:
            found = judge.figures(states(parts, given.n, strength))
            rows.append({"case": case, "strength": strength, **found})
            told = "; ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"{case} at {strength:g}: {told}", flush=True)
            given.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
