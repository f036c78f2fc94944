"""From a configuration to the parts of a run; every mistake is found here, before training."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.methods import METHODS, Method
from nablaflow.models import FlowScore, UNetFlowScore, load_model, load_pipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.rewards import NamedReward, load, probe, require_gradient
from nablaflow.training.allocator import keep_freed_memory
from nablaflow.training.config import Config
from nablaflow.training.guard import Guard
from nablaflow.training.loop import Trainer
from nablaflow.training.prompts import load_prompts, prompt_sets

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The others wait while the main process measures the run at its end.
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(hours=12))
MIXED_PRECISION = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Parts:
    """A run, ready to train.

    Attributes:
        prompts: to train on.
        fingerprint: of the pretrained weights; names their reference bank.
        evaluated: prompts to measure on.
    """

    config: Config
    prompts: list[str]
    model: PipelineModel
    reward: NamedReward
    fingerprint: str
    trainer: Trainer
    accelerator: Accelerator
    evaluated: list[str]


def model_source(config: Config) -> str:
    """Folder or hub id that the model is loaded from."""
    return str(nano.path()) if config.model == "nano" else config.model


def fingerprint(pipeline: Any) -> str:
    """A hash of all weights of a pipeline."""
    digest = hashlib.sha256()
    for name in sorted(pipeline.components):
        part = pipeline.components[name]
        if isinstance(part, torch.nn.Module):
            for key, value in sorted(part.state_dict().items()):
                digest.update(key.encode())
                flat = value.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:24]


@contextmanager
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its device and precision for the process; the next run chooses anew."""
    try:
        yield
    finally:
        if PartialState._shared_state and PartialState().num_processes > 1:
            # A thread of gloo may want Python's lock for its last tensors, while the destructor of
            # the group, whose last owner is the run's DDP, waits for that thread and has the lock.
            time.sleep(0.2)
        AcceleratorState._reset_state(reset_partial_state=True)


def make_accelerator(config: Config, run: Path) -> Accelerator:
    """The accelerator of the run, on the device and in the precision asked for, or an error."""
    device = config.training.device
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(f"training.device: there is no {device} here; use auto or cpu")
    trackers: Any = list(config.training.trackers)
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"training.trackers: {name} is not installed; pip install {name}")
    try:
        accelerator = Accelerator(
            mixed_precision=MIXED_PRECISION[config.training.precision],
            cpu=device == "cpu",
            log_with=trackers or None,  # for an empty list accelerate would warn
            project_config=ProjectConfiguration(str(run), logging_dir=str(run / "logs")),
            kwargs_handlers=[PATIENCE],
        )
    except ValueError as error:
        raise UserError(f"training.precision: {str(error).splitlines()[0]}") from error
    if device not in ("auto", accelerator.device.type):
        raise UserError(f"training.device: accelerate chose {accelerator.device.type}; use auto")
    return accelerator


def check_shares(config: Config, processes: int) -> None:
    training = config.training
    total = training.prompts_per_update * training.images_per_prompt
    if total % processes:
        raise UserError(
            f"training.prompts_per_update: {total} trajectories do not divide among {processes} "
            "processes; choose a multiple"
        )
    if total // processes % training.steps_per_rollout:
        raise UserError(
            f"training.steps_per_rollout: {total // processes} trajectories of a process do not "
            f"divide among {training.steps_per_rollout} optimizer steps; choose a divisor"
        )


def check_precision(method: Method, config: Config) -> None:
    """Densities of whole trajectories are sums of many small differences."""
    precision = config.training.precision
    if method.needs_path_ratio and precision != "float32":
        raise UserError(
            f"training.precision: {method.name} weighs by densities of whole trajectories, which "
            f"{precision} rounds by nats; use float32"
        )


def check_group(method: Method, config: Config) -> None:
    """Refuse one image a prompt for a method that compares a prompt's images."""
    if not method.needs_group or config.training.images_per_prompt > 1:
        return
    others = ", ".join(name for name, kind in METHODS.items() if not kind.needs_group)
    raise UserError(
        f"training.images_per_prompt: {method.name} compares the images of a prompt and needs 2 or "
        f"more; these do not: {others}"
    )


def check_evaluation(config: Config, prompts: list[str]) -> None:
    """The figures are found at the end of a run, too late to learn that they cannot be."""
    least = 2 * len(prompts)  # for a spread within each prompt
    for name, n in (("n", config.evaluation.n), ("bank", config.evaluation.bank or least)):
        if n < least:
            raise UserError(
                f"evaluation.{name}: {n} images are fewer than 2 for each of the {len(prompts)} "
                f"prompts; use {least} or more"
            )


def check_reward(
    method: Method, reward: NamedReward, model: PipelineModel, prompts: list[str]
) -> None:
    """Find out before training whether the reward is what the method needs."""
    height, width = model.image_size
    found = probe(reward, height=height, width=width, device=model.device, prompts=prompts)
    if method.needs_reward_gradient:
        without = [name for name, kind in METHODS.items() if not kind.needs_reward_gradient]
        require_gradient(reward.name, found, without)


def make_flow(config: Config, model: PipelineModel) -> FlowScore | None:
    """The flow-score network, seeded by the run."""
    if config.flow is None:
        return None
    channel, *sides = model.state_shape
    embedding = model.condition(["a circle"]).prompt
    width = 0 if embedding is None else embedding.shape[-1]
    torch.manual_seed(config.seed)
    # What divides both sides divides their greatest common divisor.
    return UNetFlowScore(config.flow, channel, math.gcd(*sides), width).to(model.device)


def make_guard(
    config: Config, prompts: list[str], model: PipelineModel, reward: NamedReward
) -> Guard | None:
    """The guard that the configuration asks for.

    Raises:
        UserError: too few images for its prompts, or a held-out reward that is not one.
    """
    settings = config.guard
    if settings is None:
        return None
    if settings.prompts is not None:
        prompts = load_prompts(settings.prompts, Path())
    if settings.n < 2 * len(prompts):
        raise UserError(
            f"guard.n: {settings.n} images are fewer than 2 for each of the {len(prompts)} "
            f"prompts; use {2 * len(prompts)} or more"
        )
    held_out = None
    if settings.held_out is not None:
        held_out = _held_out(settings.held_out.reward, reward.name, model, prompts)
    return Guard(settings, prompts, model, reward, held_out, config.evaluation.batch)


def _held_out(
    spec: str | dict[str, float], trained: str, model: PipelineModel, prompts: list[str]
) -> NamedReward:
    try:
        found = load(spec)
        height, width = model.image_size
        probe(found, height=height, width=width, device=model.device, prompts=prompts)
    except UserError as error:
        raise UserError(f"guard.held_out.reward: {error}") from error
    if found.name == trained:
        raise UserError(
            f"guard.held_out.reward: {trained} is the reward that is trained; use another"
        )
    return found


def prepare(config: Config, run: Path, reward: NamedReward | None = None) -> Parts:
    """Load and check everything that the configuration names; writes nothing.

    Args:
        reward: in place of the configuration's.

    Raises:
        UserError: whatever of it does not fit, with the remedy.
    """
    method = config.method
    assert isinstance(method, Method)
    sets = prompt_sets(config)
    prompts = sets.training
    check_evaluation(config, sets.evaluation)
    check_group(method, config)
    check_precision(method, config)
    reward = reward or load(config.reward)
    accelerator = make_accelerator(config, run)
    if accelerator.is_main_process:
        for note in sets.notes:
            print(note, file=sys.stderr)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_shares(config, accelerator.num_processes)
    pipeline = load_pipeline(model_source(config), _dtype(config))
    mark = fingerprint(pipeline) if config.evaluation.bank else ""
    torch.manual_seed(config.seed)  # peft draws the LoRA's first factor from the global state
    model = load_model(pipeline, config.sampler, config.adapter, accelerator.device)
    _note_cuts(model, [*prompts, *sets.evaluation], accelerator)
    training = config.training
    on_policy = training.data == "on-policy" and training.steps_per_rollout == 1
    method.check(model.process, flow=config.flow is not None, on_policy=on_policy)
    check_reward(method, reward, model, prompts)
    if method.needs_second_derivatives:
        model.allow_second_derivatives()
    if config.training.gradient_checkpointing:
        _checkpoint_gradients(model)
    flow = make_flow(config, model) if method.uses_flow else None
    guard = make_guard(config, prompts, model, reward)
    trainer = Trainer(config, prompts, model, reward, flow, accelerator, guard)
    return Parts(
        config, prompts, model, reward, mark, trainer, accelerator, evaluated=sets.evaluation
    )


def _note_cuts(model: PipelineModel, prompts: list[str], accelerator: Accelerator) -> None:
    note = model.note_on(prompts)
    if note is not None and accelerator.is_main_process:
        print(note, file=sys.stderr)


def _dtype(config: Config) -> torch.dtype:
    """A LoRA trains on top of weights in half precision; weights that train stay in float32."""
    full = config.adapter.kind == "full"
    return torch.float32 if full else DTYPES[config.training.precision]


def _checkpoint_gradients(model: PipelineModel) -> None:
    network: Any = model.network
    network.enable_gradient_checkpointing()
