"""How many samples of the reference the fit of a value needs, and how many passes over them.

    python benchmarks/value_fit.py hue --sizes 512 1024 2048 --passes 75 150 600

fits the value of `method.value: contrastive` on the cases of error_budget.py and prints, for each
size and number of passes, how many nats of the tilt's weights it tells at the noisier half of the
levels: on 1,200 samples of the case's bank, which no fit has seen. Seconds are of the processor, in
one thread. It writes runs/value-fit.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from error_budget import prepared
from torch import Tensor

from nablaflow.estimators import LogFlowFit, ReferenceSamples, contrastive, fit_log_flow
from nablaflow.evaluation.bank import reference_bank, sample_states, spread
from nablaflow.models import make_log_flow
from nablaflow.runs.setup import Parts

BATCH = 64
SEEN_BY_NONE = 1200


def scored(parts: Parts, states: Tensor) -> ReferenceSamples:
    """Samples of the reference, prompts in turns, with their rewards."""
    model = parts.model
    prompts = [parts.prompts[place] for place in spread(len(states), len(parts.prompts)).tolist()]
    with torch.no_grad():
        rewards = [
            parts.reward(model.decode(part), prompts[start : start + BATCH]).double()
            for start, part in zip(range(0, len(states), BATCH), states.split(BATCH), strict=True)
        ]
    return ReferenceSamples.of(model, states, torch.cat(rewards), prompts)


def samples(parts: Parts, n: int) -> Tensor:
    with parts.model.reference():
        return sample_states(
            parts.model,
            parts.prompts,
            n,
            seed=7,
            batch=BATCH,
            purpose="value",
            on_progress=lambda done: None,
        )


@torch.no_grad()
def nats(
    parts: Parts, fit: LogFlowFit, unseen: ReferenceSamples
) -> tuple[list[float], list[float]]:
    """What the predicted reward and the fitted mix tell, by level."""
    model, beta = parts.model, parts.config.method.beta
    generator = torch.Generator().manual_seed(3)
    found, sizes = [], (BATCH, BATCH)
    for k in range(model.process.steps // 2 + 1, model.process.steps + 1):
        told = []
        for place, rows in enumerate(unseen.rows):
            part = unseen.contrast(model.process, beta, place, rows, k, generator)
            values = contrastive._values(fit.network, model, parts.reward, beta, part, sizes)
            pair = torch.tensor([[1.0, 0.0], [fit.gamma[k], fit.delta[k]]]).double()
            told.append([math.log(len(rows)) - part.loss(mix).item() for mix in pair @ values])
        found.append(torch.tensor(told).mean(0).tolist())
    ahead, mixed = zip(*found, strict=True)
    return list(ahead), list(mixed)


def fitted(parts: Parts, samples: ReferenceSamples, passes: int) -> tuple[LogFlowFit, float]:
    contrastive.PASSES, contrastive.MOST = passes, 10**6
    network, started = make_log_flow(parts.model, 5), time.process_time()
    fit = fit_log_flow(
        network,
        parts.model,
        parts.reward,
        parts.config.method.beta,
        samples,
        torch.Generator().manual_seed(1),
        batch=BATCH,
    )
    return fit, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--passes", type=int, nargs="+", default=[75, 150, 600])
    parser.add_argument("--out", type=Path, default=Path("runs/value-fit.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for case in given.cases:
        parts = prepared(case, 0, 1)
        bank = reference_bank(
            parts.model,
            parts.fingerprint,
            parts.prompts,
            parts.config.sampler,
            parts.config.evaluation.bank,
            batch=BATCH,
            on_progress=lambda done: None,
        )
        unseen = scored(parts, bank[:SEEN_BY_NONE].float())
        states = samples(parts, max(given.sizes))
        whole = scored(parts, states)
        for size in given.sizes:
            part = ReferenceSamples.of(
                parts.model,
                whole.x0[:size],
                whole.rewards[:size],
                [parts.prompts[place] for place in spread(size, len(parts.prompts)).tolist()],
            )
            for passes in given.passes:
                fit, seconds = fitted(parts, part, passes)
                ahead, mixed = nats(parts, fit, unseen)
                row = {"case": case, "samples": size, "passes": passes, "seconds": seconds}
                rows.append({**row, "ahead": ahead, "mixed": mixed})
                shown = " ".join(f"{value:.2f}" for value in mixed)
                told = " ".join(f"{value:.2f}" for value in ahead)
                print(
                    f"{case} {size} {passes}: {shown}; r(x0_hat) {told}; {seconds:.0f} s",
                    flush=True,
                )
                given.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
