"""From a configuration to the parts of a run; every mistake is found here, before training."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from nablaflow.config.recipe import Config
from nablaflow.errors import as_told
from nablaflow.evaluation.bank_size import BankSize
from nablaflow.evaluation.measure import Subject
from nablaflow.models import (
    FlowScore,
    LivePipeline,
    ModelSource,
    Quantized,
    WithLora,
    fingerprint,
    load_model,
    make_flow_score,
)
from nablaflow.models.lora_loading import is_read_alike
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.quantized import quantized_told
from nablaflow.progress import StartProgress, unseen
from nablaflow.prompts.sets import prompt_sets
from nablaflow.rewards import NamedReward
from nablaflow.runs.accelerator import make_accelerator
from nablaflow.runs.agreement import check_agreement
from nablaflow.runs.begun_with import as_begun
from nablaflow.runs.budget import with_batches
from nablaflow.runs.checks import check_metrics, check_model, check_settings, check_shares
from nablaflow.runs.choices import settle
from nablaflow.runs.guard import make_guard
from nablaflow.runs.launch import Launch
from nablaflow.runs.pretrained import load_pretrained, source_of
from nablaflow.runs.rewards import ahead_told, load_reward
from nablaflow.storage.whole import last_whole
from nablaflow.training.kernels import find_kernels, load_kernels
from nablaflow.training.loop import Trainer


@dataclass(frozen=True)
class Parts:
    """A run, ready to train.

    Attributes:
        config: with what it left to the run.
        prompts: to train on.
        source: of the pretrained pipeline.
        fingerprint: of the pretrained weights; names their reference bank.
        evaluated: prompts to measure on.
        notes: lines for the user about the prompts.
        choices: and about what the run trains.
    """

    config: Config
    prompts: list[str]
    model: PipelineModel
    reward: NamedReward
    source: ModelSource
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
            BankSize.all_of(self.config.evaluation.bank),
        )

    def tell(self, lines: Iterable[str]) -> None:
        """Print lines for the user, on the main process."""
        if self.accelerator.is_main_process:
            for line in lines:
                print(as_told(line), file=sys.stderr)


def prepare(
    config: Config,
    run: Path,
    reward: NamedReward | None = None,
    checkpoint: Path | None = None,
    start: StartProgress = unseen,
    pipeline: LivePipeline | None = None,
    *,
    ends: bool = False,
) -> Parts:
    """Load and check everything that the configuration names; writes nothing.

    Args:
        reward: in place of the configuration's.
        checkpoint: of the run that is gone on with or measured, whose kernels are taken; None:
            there is none, and analytic ones are estimated.
        start: shows the work of finding kernels and beta, where those are left to the run.
        pipeline: in place of the model that the configuration names.
        ends: whether the run is trained, and comes to its end; what a method leaves to that is
            otherwise as if it did not.

    Raises:
        UserError: whatever of it does not fit, with the remedy.
    """
    sets = prompt_sets(
        config.prompts,
        evaluation=config.evaluation.prompts,
        hold_out=config.evaluation.hold_out,
        seed=config.seed,
    )
    prompts, evaluated, notes = sets.training, sets.evaluation, sets.notes
    check_settings(config, evaluated, fresh=checkpoint is None)
    reward = load_reward(config, reward)
    accelerator = make_accelerator(config.training, run)
    read = {"prompts": prompts, "evaluation.prompts": evaluated}
    check_agreement(config, {**read, "checkpoint": [] if checkpoint is None else [checkpoint.name]})
    check_shares(config.training, accelerator.num_processes)
    check_metrics(config, evaluated, accelerator.device)
    model, mark = _load_model(config, checkpoint, pipeline, accelerator.device)
    check_model(config, model, reward, prompts)
    _note_cuts(model, [*prompts, *evaluated], accelerator)
    seen = start if accelerator.is_main_process else unseen
    guard = make_guard(config, prompts, model, reward, mark)  # before the work, since it may refuse
    _settle_kernels(config, model, mark, prompts, checkpoint, seen)
    config, choices = settle(config, model, reward, prompts, seen, ends=ends)
    suit(model, config)
    config, flow, sizes = flow_beside(config, model)
    processes, sharded = accelerator.num_processes, Launch.read(os.environ, config.training).sharded
    config, fitted = with_batches(config, model, reward, flow, processes, sharded=sharded)
    given = (config, prompts, model, reward, flow, accelerator, guard)
    trainer = Trainer(*given, fingerprint=mark, sharded=sharded)
    source, ahead = source_of(config, pipeline), ahead_told(config, model, reward)
    told = (*_reference_told(source, model), *choices, *sizes, *fitted, *ahead)
    return Parts(
        config, prompts, model, reward, source, mark, trainer, accelerator, evaluated, notes, told
    )


def _reference_told(source: ModelSource, model: PipelineModel) -> list[str]:
    """A line about a reference that is not what the model's name says."""
    if isinstance(source, Quantized):
        amount = quantized_told(model.network)
        note = f"reference: {amount}; the KL and the tilt are of the quantized network"
        return [*_reference_told(source.model, model), note]
    if not isinstance(source, WithLora):
        return []
    told = [f"reference: the model {source}; the KL and the tilt are of the two together"]
    if not is_read_alike(model.pipeline, model.part(), source.file):
        told.append(
            f"model_lora: {source.file} has names, shapes or scales of layers that diffusers by "
            "itself reads otherwise or not; an export as merged (--format) has the policy with it "
            "inside"
        )
    return told


def _load_model(
    config: Config, checkpoint: Path | None, pipeline: LivePipeline | None, device: torch.device
) -> tuple[PipelineModel, str]:
    """The model to align, and what names its pretrained weights, where a bank is made of them."""
    adapter = config.adapter if checkpoint is None else as_begun(config.adapter)
    pretrained = load_pretrained(config, pipeline)
    mark = fingerprint(pretrained) if config.evaluation.bank else ""
    torch.manual_seed(config.seed)  # peft draws the LoRA's first factor from the global state
    model = load_model(pretrained, config.sampler, adapter, device)
    asked = config.training.offload_encoders
    if model.heavy_encoders if asked is None else asked:
        model.offload_encoders()
    return model, mark


def suit(model: PipelineModel, config: Config) -> None:
    """Have the network do what the method and the settings ask of it."""
    if config.method.needs_second_derivatives:
        model.allow_second_derivatives()
    if config.training.decoder == "tiny":
        model.use_small_decoder()
    model.use_decoder_in(config.training.decoder_precision)
    if config.training.gradient_checkpointing:
        model.checkpoint_activations()


def flow_beside(config: Config, model: PipelineModel) -> tuple[Config, FlowScore | None, list[str]]:
    """With the channels of the flow network, the network, and a line about it; if there is one."""
    if not config.method.uses_flow or config.flow is None:
        return config, None, []
    torch.manual_seed(config.seed)
    flow, size = make_flow_score(model, config.flow)
    return config.model_copy(update={"flow": flow.settings}), flow, [size]


def _settle_kernels(
    config: Config,
    model: PipelineModel,
    mark: str,
    prompts: list[str],
    checkpoint: Path | None,
    start: StartProgress,
) -> None:
    """Take the kernels' variances from the reference, where they are not the schedule's."""
    if config.sampler.variance != "analytic":
        return
    if checkpoint is None:
        find_kernels(model, prompts, config.sampler, config.evaluation.batch, mark, start)
    else:  # the same are in every one
        last_whole(checkpoint.parents[1], lambda folder: load_kernels(model, folder))


def _note_cuts(model: PipelineModel, prompts: list[str], accelerator: Accelerator) -> None:
    note = model.note_on(prompts)
    if note is not None and accelerator.is_main_process:
        print(note, file=sys.stderr)
