"""`nf.align`: a recipe in arguments."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nablaflow.api.given import Model, Prompts, model_of, prompts_of, reward_of, text_of
from nablaflow.config.defaults import DEFAULTS
from nablaflow.config.overrides import merge, refuse_idle_flow
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.config.settings import (
    EvaluationSettings,
    GuardSettings,
    OptimizerSettings,
    TrainingSettings,
)
from nablaflow.config.suggestions import suggest
from nablaflow.errors import UserError, in_python, nearest
from nablaflow.methods import Method
from nablaflow.methods.own import load_method
from nablaflow.models import AdapterSettings, FlowSettings, SamplerSettings
from nablaflow.prompts.source import absolute
from nablaflow.rewards import load
from nablaflow.runs.align import run
from nablaflow.runs.callback import OnUpdate
from nablaflow.runs.run import Run
from nablaflow.settings import Settings
from nablaflow.surroundings import surrounded
from nablaflow.typing import Reward

Group = Mapping[str, Any] | Literal["default"]
"""Settings to change in the defaults, as a recipe has them; or the defaults."""


@in_python
@surrounded
def align(
    *,
    model: Model = "nano",
    model_lora: str | Path | None = None,
    model_lora_scale: float = 1.0,
    model_quantization: str | None = None,
    reward: str | Mapping[str, Any] | Reward,
    prompts: Prompts,
    method: Method | str | Mapping[str, Any],
    output_dir: str | Path,
    updates: int | None = None,
    seed: int = 0,
    sampler: SamplerSettings | Group = "default",
    adapter: AdapterSettings | Group = "default",
    flow: FlowSettings | Group | None = "default",
    optimizer: OptimizerSettings | Group = "default",
    training: TrainingSettings | Group = "default",
    evaluation: EvaluationSettings | Group = "default",
    guard: GuardSettings | Group | None = "default",
    on_update: OnUpdate | None = None,
    overwrite: bool = False,
    resume: bool = False,
    steps: int | None = None,
    **unknown: Any,
) -> Run:
    """Align a model with a reward and write a run folder.

    A group of settings is an object, such as ``SamplerSettings(steps=50)``, taken as it is; or a
    mapping, such as ``{"steps": 50}``, that changes the defaults of `nablaflow.config.defaults`.

    Args:
        model: ``nano``, ``flow``, a diffusers folder, a hub id, or a diffusers pipeline that is in
            memory, which stays as it is.
        model_lora: a LoRA that is fused into the model first; the two are then the reference.
        model_lora_scale: strength of that.
        model_quantization: ``nf4``: the denoiser in 4 bits, which is then the reference.
        reward: name, ``file.py:function``, sum of those, a mapping with ``name`` and settings, or
            a callable ``(images, prompts)``.
        prompts: a list, a file, a set by name, or a mapping of source, column and split; None for
            an unconditional model.
        method: an object such as ``ResidualNablaDB(beta=100.0)``, a name, or a mapping.
        output_dir: the run folder.
        updates: optimizer updates; 200 unless ``training`` has them.
        seed: of training: noise, prompt order, chosen transitions.
        sampler: the reverse process.
        adapter: the weights to train.
        flow: the flow network; None is none.
        optimizer: AdamW.
        training: the loop.
        evaluation: the measurement at the end.
        guard: watches for reward hacking; None is none.
        on_update: told the record of each update, as metrics.jsonl has it. True ends training
            there; the run is then measured and saved as usual.
        overwrite: replace the run in ``output_dir``.
        resume: go on from its last checkpoint.
        steps: the older name of ``updates``.

    Raises:
        UserError: a mistake in any of these, or ``on_update`` raised; the run then has a
            checkpoint.
        Interrupted: after Ctrl-C, with a checkpoint.
    """
    _refuse_unknown(unknown)
    given, (name, live) = load(reward), model_of(model)
    values: dict[str, Any] = {
        "model": name,
        "model_lora": text_of(model_lora),
        "model_lora_scale": model_lora_scale,
        "model_quantization": model_quantization,
        "reward": reward_of(reward),
        "prompts": absolute(prompts_of(prompts), Path()),
        "method": method,
        "output_dir": text_of(output_dir),
        "seed": seed,
    }
    groups = {
        "sampler": sampler,
        "adapter": adapter,
        "flow": flow,
        "optimizer": optimizer,
        "training": _with_updates(training, _updates(updates, steps)),
        "evaluation": evaluation,
        "guard": guard,
    }
    said = {name: group for name, group in groups.items() if not _is_default(group)}
    config = parse_config(merge(merge(DEFAULTS, values), said), load_method)
    _refuse_idle(config, flow, optimizer)
    return run(
        config, resume=resume, overwrite=overwrite, reward=given, pipeline=live, on_update=on_update
    )


def _refuse_unknown(unknown: Mapping[str, Any]) -> None:
    for word in unknown:
        hint = nearest(word, inspect.signature(align).parameters)
        if not hint.startswith("did you mean"):
            hint = suggest(word, Config)
        raise UserError(f"{word}: nablaflow.align has no such argument; {hint}")


def _refuse_idle(config: Config, flow: Any, optimizer: OptimizerSettings | Group) -> None:
    """Who gives a setting of the flow network in a call wants one."""
    if not _is_default(flow):
        refuse_idle_flow(config, ("flow",), flow)
    if isinstance(optimizer, Settings):
        optimizer = optimizer.model_dump(include=optimizer.model_fields_set)
    for name, value in optimizer.items() if isinstance(optimizer, Mapping) else ():
        refuse_idle_flow(config, ("optimizer", name), value)


def _updates(updates: int | None, steps: int | None) -> int | None:
    if steps is None:
        return updates
    if updates is not None:
        raise UserError("steps: the older name of updates, which is given as well; leave it out")
    print(
        f"steps: is called updates now, since a sampler has steps too; write updates={steps}",
        file=sys.stderr,
    )
    return steps


def _with_updates(training: TrainingSettings | Group, updates: int | None) -> Any:
    if updates is None:
        return training
    if _is_default(training):
        return {"updates": updates}
    whole = isinstance(training, Settings)
    if not (whole or isinstance(training, Mapping)):
        return training  # which the settings' own check refuses
    said = training.model_fields_set if whole else training
    if "updates" in said:
        raise UserError("updates: training has them as well; give one of the two")
    return {**(training.model_dump() if whole else training), "updates": updates}


def _is_default(group: Any) -> bool:
    """Not by ``==`` alone, which an array answers for each of its numbers."""
    return isinstance(group, str) and group == "default"
