"""Write the scores that ship beside the embedded models' banks; after a bank was made anew.

    python benchmarks/shipped_scores.py

The tests score a part of each bank again and compare.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nablaflow import nano
from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.evaluation.bank import spread
from nablaflow.evaluation.scored import FEATURES
from nablaflow.features import pooled_pixels
from nablaflow.models import load_model, load_pipeline
from nablaflow.rewards import SCORED, load
from nablaflow.storage.cached import key_of, read_cached, write_cached

BATCH = 64


@torch.no_grad()
def scores(model: str) -> dict[str, Tensor]:
    """Features, float16, and the scores by each reward, of a model's whole bank."""
    config = load_config(None, [], demo_settings(model=model))
    pipeline = load_pipeline(str(nano.path(model)))
    decode = load_model(pipeline, config.sampler, config.adapter, torch.device("cpu")).decode
    states = (read_cached(nano.bank_path(model)) or {})["states"]
    assert isinstance(config.prompts, list)
    prompts = [config.prompts[place] for place in spread(len(states), len(config.prompts)).tolist()]
    found: dict[str, list[Tensor]] = {name: [] for name in (FEATURES, *SCORED)}
    for begin in range(0, len(states), BATCH):
        images = decode(states[begin : begin + BATCH].float())
        found[FEATURES].append(pooled_pixels(images).half())
        for name in SCORED:
            found[name].append(load(name)(images, prompts[begin : begin + BATCH]))
    return {name: torch.cat(parts) for name, parts in found.items()}


if __name__ == "__main__":
    for name in nano.MODELS:
        key = key_of(nano.bank_path(name))
        assert key is not None
        write_cached(nano.scores_path(name), scores(name), key)
        print(nano.scores_path(name))
