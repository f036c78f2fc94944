"""Two updates of each method on the processor and on `CARD`; a process of its own, see `card`.

    python -m tests.support.other_device MODEL_FOLDER '[{"name": …, "beta": …}, …]'

prints both runs' figures of each update, a JSON object for each method.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nablaflow.config.recipe import Config, parse_config
from nablaflow.runs import accelerator
from nablaflow.runs.setup import prepare
from tests.support.card import CARD, card

_made = accelerator._accelerator


def _accelerator_of(training: Any, device: torch.device, *given: Any) -> Any:
    """Accelerate knows no such device; it is told afterwards."""
    made = _made(training, torch.device("cpu"), *given)
    made.state._shared_state["device"] = device
    return made


def config_of(model: str, method: dict[str, Any], folder: str) -> Config:
    return parse_config(
        {
            "model": model,
            "reward": "warmth",
            "prompts": ["a circle", "a square", "a star"],
            "output_dir": folder,
            "method": method,
            "sampler": {"steps": 4},
            "adapter": {"rank": 2, "ema_decay": 0.9},
            "optimizer": {"learning_rate": 1e-2},
            "training": {
                "updates": 2,
                "prompts_per_update": 2,
                "images_per_prompt": 2,
                "transition_fraction": 0.5,
                "gamma_trajectories": 8,
                "value_samples": 64,
                "trackers": [],
            },
            "guard": None,
            "evaluation": {"n": 6, "batch": 6},
        }
    )


def updates(model: str, method: dict[str, Any], device: torch.device) -> list[dict[str, float]]:
    accelerator.best_device = lambda: device
    with TemporaryDirectory() as folder:
        config = config_of(model, method, str(Path(folder) / "run"))
        with accelerator.fresh_accelerator():
            parts = prepare(config, config.output_dir)
            assert parts.model.device == device
            return [_figures(parts.trainer.step()) for _ in range(config.training.updates)]


def _figures(record: Any) -> dict[str, float]:
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, float) and "seconds" not in name
    }


if __name__ == "__main__":
    accelerator._accelerator = _accelerator_of
    for method in json.loads(sys.argv[2]):
        found = {"cpu": updates(sys.argv[1], method, torch.device("cpu"))}
        with card():
            found["card"] = updates(sys.argv[1], method, CARD)
        print(json.dumps(found), flush=True)
    os._exit(0)  # torch's backend in Python does not survive the interpreter's end
