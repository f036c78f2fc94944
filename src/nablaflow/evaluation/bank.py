"""The reference bank: thousands of the pretrained model's samples, made once and cached.

Reweighted by exp(beta r) they are the exact tilted distribution, for any reward and any beta.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from nablaflow.diffusion import trajectory_noise
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.evaluation.kept import find_kept, keep
from nablaflow.evaluation.shares import in_shares
from nablaflow.models import SamplerSettings
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import Done
from nablaflow.seeds import stream
from nablaflow.typing import Latents

BANK_SEED = 0
"""Of every bank's noise, so that runs of other seeds share one."""


def spread(n: int, prompts: int) -> Int[Tensor, "sample"]:
    """Prompt indices of ``n`` samples, as even as they come, in turns."""
    return torch.arange(n) % prompts


@torch.no_grad()
def sample_states(
    model: PipelineModel,
    prompts: list[str],
    n: int,
    *,
    seed: int,
    batch: int,
    purpose: str,
    on_progress: Done,
    start: int = 0,
) -> Latents:
    """``n`` clean states of whichever network is active, prompts in turns, on the processor.

    Each process of a run makes its share of them, and has all afterwards; so every one must call.

    Sample i depends on the seed and on ``purpose`` alone: the reference and the policy get the
    same noise, and a bank another.

    Args:
        start: number of the first of them.
    """
    index = spread(start + n, len(prompts)).tolist()

    def work(part: slice) -> Latents:
        rows = range(start + part.start, start + part.stop)
        noise = trajectory_noise([stream(seed, purpose, row) for row in rows])
        return model.sample([prompts[index[row]] for row in rows], noise).x0.cpu()

    return torch.cat(in_shares(work, n, batch, "evaluation.batch", on_progress))


def states_key(
    fingerprint: str,
    prompts: list[str],
    sampler: SamplerSettings,
    process: ReverseProcess,
    n: int,
    seed: int,
    own: Sequence[str] = (),
) -> str:
    """Names samples of the reference, a bank say, by everything that they depend on.

    Args:
        fingerprint: of the pretrained weights.
        process: the kernels themselves; they depend on the model's scheduler besides the sampler.
        own: what those that are no bank depend on besides.
    """
    tables = {
        name: [round(float(entry), 4) for entry in value] if isinstance(value, Tensor) else value
        for name, value in vars(process).items()
    }
    # A setting that is null says nothing, so a new one leaves every bank its name. The variance
    # is in the kernels' own tables.
    settings = sampler.model_dump(exclude={"variance"}, exclude_none=True)
    content = json.dumps([fingerprint, list(prompts), settings, tables, n, seed, *own])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def reference_bank(
    model: PipelineModel,
    fingerprint: str,
    prompts: list[str],
    sampler: SamplerSettings,
    n: int,
    *,
    batch: int,
    on_progress: Done,
    whole: int | None = None,
    known: Tensor | None = None,
) -> Latents:
    """States of the reference, float16: the shipped ones, the cached ones, or made now.

    Args:
        fingerprint: of the pretrained weights.
        n: how many.
        whole: of a larger bank, whose first ones these are; taken from it where it is there.
        known: the first of them, where some are known.
    """
    seed = BANK_SEED
    keys = [
        states_key(fingerprint, prompts, sampler, model.process, size, seed)
        for size in dict.fromkeys((whole or n, n))
    ]
    for key in keys:
        found = find_kept("bank", key)
        if found is not None:
            on_progress(n)
            return found["states"][:n]
    start = 0 if known is None else len(known)
    on_progress(start)
    with model.reference():
        made = sample_states(
            model,
            prompts,
            n - start,
            seed=seed,
            batch=batch,
            purpose="bank",
            on_progress=on_progress,
            start=start,
        ).half()
    states = made if known is None else torch.cat([known, made])
    keep("bank", keys[-1], {"states": states})
    return states
