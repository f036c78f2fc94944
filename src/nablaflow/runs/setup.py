"""From a configuration to the parts of a run; every mistake is found here, before training."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.evaluation.beta import ChosenBeta, find_beta
from nablaflow.evaluation.guard import Guard
from nablaflow.evaluation.measure import StartProgress, Subject
from nablaflow.methods import Method
from nablaflow.methods.tilt_rule import TiltRule
from nablaflow.models import (
    fingerprint,
    load_model,
    load_pipeline,
    make_flow_score,
    model_source,
)
from nablaflow.models.pipelines import PipelineModel
from nablaflow.prompts.sets import load_prompts, prompt_sets
from nablaflow.rewards import NamedReward, load, probe
from nablaflow.runs.checks import (
    check_evaluation,
    check_fits,
    check_group,
    check_precision,
    check_prompts,
    check_reward,
    check_shares,
)
from nablaflow.runs.choices import undecided, with_beta, with_targets
from nablaflow.training.allocator import keep_freed_memory
from nablaflow.training.kernels import find_kernels, load_kernels
from nablaflow.training.loop import Trainer

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The others wait while the main process measures the run at its end.
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(hours=12))
LOOKS, LOOKED_AT = 5, 32  # of a guard that is left to itself: looks, and images of each
MIXED_PRECISION = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Parts:
    """A run, ready to train.

    Attributes:
        config: with what it left to the run.
        prompts: to train on.
        fingerprint: of the pretrained weights; names their reference bank.
        evaluated: prompts to measure on.
        notes: lines for the user about the prompts.
        choices: and about what the run trains.
    """

    config: Config
    prompts: list[str]
    model: PipelineModel
    reward: NamedReward
    fingerprint: str
    trainer: Trainer
    accelerator: Accelerator
    evaluated: list[str]
    notes: tuple[str, ...]
    choices: tuple[str, ...]

    @property
    def subject(self) -> Subject:
        """What of it is measured."""
        return Subject(
            self.config,
            self.model,
            self.reward,
            self.evaluated,
            self.fingerprint,
            self.trainer.method.beta,
        )

    def tell(self, lines: Iterable[str]) -> None:
        """Print lines for the user, on the main process."""
        if self.accelerator.is_main_process:
            for line in lines:
                print(line, file=sys.stderr)


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
    if settings.every == "auto":
        every = -(-config.training.updates // LOOKS)
        settings = settings.model_copy(update={"every": every})
    if settings.n == "auto":
        prompts = list(dict.fromkeys(prompts))[: LOOKED_AT // 2]
        settings = settings.model_copy(update={"n": LOOKED_AT})
    assert settings.n != "auto"
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


def prepare(
    config: Config,
    run: Path,
    reward: NamedReward | None = None,
    checkpoint: Path | None = None,
    start: StartProgress = lambda what, total: lambda done: None,
) -> Parts:
    """Load and check everything that the configuration names; writes nothing.

    Args:
        reward: in place of the configuration's.
        checkpoint: of the run that is gone on with or measured, whose kernels are taken; None:
            there is none, and analytic ones are estimated.
        start: shows the work of finding beta, where that is left to the run.

    Raises:
        UserError: whatever of it does not fit, with the remedy.
    """
    method = config.method
    assert isinstance(method, Method)
    sets = prompt_sets(
        config.prompts,
        evaluation=config.evaluation.prompts,
        hold_out=config.evaluation.hold_out,
        seed=config.seed,
    )
    prompts = sets.training
    check_evaluation(config, sets.evaluation)
    check_group(method, config)
    check_precision(method, config)
    reward = replace(reward or load(config.reward), timeout=config.training.reward_timeout)
    accelerator = make_accelerator(config, run)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_shares(config, accelerator.num_processes)
    pipeline = load_pipeline(model_source(config.model), _dtype(config))
    mark = fingerprint(pipeline) if config.evaluation.bank else ""
    torch.manual_seed(config.seed)  # peft draws the LoRA's first factor from the global state
    model = load_model(pipeline, config.sampler, config.adapter, accelerator.device)
    check_fits(config, model)
    check_prompts(config, model)
    config = with_targets(config, model)
    choices = [str(model.adapter.coverage)]
    _note_cuts(model, [*prompts, *sets.evaluation], accelerator)
    training = config.training
    on_policy = training.data == "on-policy" and training.steps_per_rollout == 1
    method.check(model.process, flow=config.flow is not None, on_policy=on_policy)
    check_reward(method, reward, model, prompts)
    if config.sampler.variance == "analytic":
        _settle_kernels(config, model, prompts, checkpoint, shown=accelerator.is_main_process)
    rule = undecided(config)
    if rule is not None:
        found = _found_beta(rule, config, model, reward, prompts, start)
        config = with_beta(config, found.beta)
        choices.append(str(found))
    if method.needs_second_derivatives:
        model.allow_second_derivatives()
    if config.training.gradient_checkpointing:
        _checkpoint_gradients(model)
    flow = None
    if method.uses_flow and config.flow is not None:
        torch.manual_seed(config.seed)
        flow, size = make_flow_score(model, config.flow)
        config = config.model_copy(update={"flow": flow.settings})
        choices.append(size)
    guard = make_guard(config, prompts, model, reward)
    trainer = Trainer(config, prompts, model, reward, flow, accelerator, guard)
    return Parts(
        config,
        prompts,
        model,
        reward,
        mark,
        trainer,
        accelerator,
        evaluated=sets.evaluation,
        notes=sets.notes,
        choices=tuple(choices),
    )


def _settle_kernels(
    config: Config,
    model: PipelineModel,
    prompts: list[str],
    checkpoint: Path | None,
    *,
    shown: bool,
) -> None:
    if checkpoint is None:
        find_kernels(model, prompts, config.evaluation.batch, shown=shown)
    else:
        load_kernels(model, checkpoint)


def _found_beta(
    rule: TiltRule,
    config: Config,
    model: PipelineModel,
    reward: NamedReward,
    prompts: list[str],
    start: StartProgress,
) -> ChosenBeta:
    """The main process's, on all of them."""
    found: list[ChosenBeta | UserError | None] = [None]
    if PartialState().is_main_process:
        try:
            found = [find_beta(rule, model, reward, prompts, start, config.evaluation.batch)]
        except UserError as error:
            found = [error]
    (chosen,) = broadcast_object_list(found)
    if isinstance(chosen, UserError):
        raise chosen
    assert chosen is not None
    return chosen


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
