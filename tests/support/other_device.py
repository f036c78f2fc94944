"""The same on the processor and on `CARD`; a process of its own, see `card`.

    python -m tests.support.other_device updates MODEL_FOLDER '[["method.name=…", …], …]'
    python -m tests.support.other_device run MODEL_FOLDER '[["training.precision=bf16", …], …]'
    python -m tests.support.other_device memory MODEL_FOLDER '[[…], …]'

prints the figures of both, a JSON object for each list of overrides: of two updates, or of a run
that is begun, resumed, evaluated and drawn from. Of ``memory`` it is the bytes on `CARD`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState

from nablaflow.api.evaluate import evaluate
from nablaflow.api.sample import sample
from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.models.formats import write_policy
from nablaflow.models.rehearsal import rehearse
from nablaflow.runs import accelerator, align
from nablaflow.runs.budget import plan_for
from nablaflow.runs.setup import prepare
from nablaflow.storage.records import read_records
from nablaflow.storage.run_folder import METRICS
from tests.support.card import CARD, MEMORY, card

Figures = dict[str, float]
_made = accelerator._accelerator


def _accelerator_of(training: Any, device: torch.device, *given: Any) -> Any:
    """Accelerate knows no such device; it is told afterwards."""
    made = _made(training, torch.device("cpu"), *given)
    for state in (PartialState, AcceleratorState):
        state._shared_state["device"] = device
    return made


def config_of(model: str, folder: str, overrides: Sequence[str]) -> Config:
    values = {
        "model": model,
        "reward": "warmth",
        "prompts": ["a circle", "a square", "a star"],
        "output_dir": folder,
        "method": {"name": "residual-nabla-db", "beta": 100.0},
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
            "checkpoint_every": 1,
            "sample_every": 1,
            "trackers": [],
        },
        "guard": None,
        "evaluation": {"n": 6, "batch": 6, "bank": 32},
    }
    return load_config(None, overrides, values)


def use(device: torch.device) -> None:
    """All that looks for the best device finds this one."""
    for name, module in list(sys.modules.items()):
        if name.startswith("nablaflow") and "best_device" in vars(module):
            vars(module)["best_device"] = lambda: device


def updates(model: str, overrides: Sequence[str]) -> list[Figures]:
    with TemporaryDirectory() as folder:
        config = config_of(model, str(Path(folder) / "run"), overrides)
        with accelerator.fresh_accelerator():
            parts = prepare(config, config.output_dir)
            return [figures_of(parts.trainer.step()) for _ in range(config.training.updates)]


def run(model: str, overrides: Sequence[str]) -> list[Figures]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        align.run(config_of(model, str(out), [*overrides, "training.updates=1"]))
        align.run(config_of(model, str(out), overrides), resume=True)
        measured = evaluate(out)
        drawn = sample(out, n=3, out=Path(folder) / "drawn")
        found = [figures_of(record) for record in read_records(out / METRICS)]
        found += [figures_of(measured[name]) for name in ("reference", "policy")]
        return [*found, {"mean of a drawn image": float(np.mean(drawn[0]))}]


def memory(model: str, overrides: Sequence[str]) -> list[Figures]:
    with TemporaryDirectory() as folder:
        config = config_of(model, str(Path(folder) / "run"), overrides)
        with accelerator.fresh_accelerator():
            parts = prepare(config, config.output_dir)
            torch.backends.cuda.enable_flash_sdp(False)  # `CARD` has no fused attention
            found = {"held": MEMORY.now}
            found["rehearsal"] = most_in(lambda: rehearse(parts.model, parts.source, Path(folder)))
            merged = Path(folder) / "merged"
            export = partial(
                write_policy, parts.model, parts.source, merged, "merged", torch.bfloat16
            )
            found["merged export"] = most_in(export)
            if config.training.precision == "float32":  # `CARD` has no autocast
                plan = plan_for(parts.config, parts.model, parts.reward, None, 1e12, device=CARD)
                found["planned rehearsal"] = found["held"] + plan.stages["rehearsal"]
                found["planned update"] = plan.peak - plan.parts["the process"]
                parts.trainer.step()  # the optimizer's moments are there from then on
                found["update"] = most_in(parts.trainer.step)
            return [{name: float(value) for name, value in found.items()}]


def most_in(work: Callable[[], Any]) -> int:
    gc.collect()
    MEMORY.most = MEMORY.now
    work()
    return MEMORY.most


def figures_of(record: Mapping[str, Any]) -> Figures:
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, float) and "seconds" not in name
    }


if __name__ == "__main__":
    accelerator._accelerator = _accelerator_of
    work = {"updates": updates, "run": run, "memory": memory}[sys.argv[1]]
    for overrides in json.loads(sys.argv[3]):
        found = {}
        if work is not memory:
            use(torch.device("cpu"))
            found["cpu"] = work(sys.argv[2], overrides)
        use(CARD)
        with card():
            found["card"] = work(sys.argv[2], overrides)
        print(json.dumps(found), flush=True)
    os._exit(0)  # torch's backend in Python does not survive the interpreter's end
