"""The policy of a run that was trained: which of its checkpoints, and how much of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.devices import best_device
from nablaflow.errors import UserError
from nablaflow.evaluation.policy_state import put_policy
from nablaflow.evaluation.strengths import check_strengths
from nablaflow.methods import Method
from nablaflow.models import LivePipeline, load_model
from nablaflow.models.pipelines import PipelineModel
from nablaflow.runs.begun_with import as_begun
from nablaflow.runs.pretrained import check_may_be_given, reference_of
from nablaflow.runs.saved_config import load_run_config
from nablaflow.runs.trust import THE_MODEL, check_trusted, methods_of, parts_of_run
from nablaflow.storage.checkpoint import best_folder, load_checkpoint, load_group
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.whole import last_whole
from nablaflow.training.kernels import GROUP as KERNELS
from nablaflow.training.kernels import load_kernels

LAST, BEST, REFERENCE = "last", "best", "reference"


def load_policy(
    run: Path,
    parts: Collection[str] = (*THE_MODEL, "prompts"),
    *,
    checkpoint: str = LAST,
    strength: float = 1.0,
    average: bool = False,
    trusted: bool = False,
    sampler: str | None = None,
    pipeline: LivePipeline | None = None,
    method: type[Method] | None = None,
    settings: Sequence[str] = (),
    choices: Collection[str] = (LAST, BEST, REFERENCE),
) -> tuple[PipelineModel, Config, Path]:
    """The policy of a run, the run's configuration, and the folder of the checkpoint.

    Args:
        parts: groups of the configuration that will be used.
        checkpoint: ``last``, ``best`` (the guard's), ``step-12``, or ``reference``: without any.
        strength: of what was trained: 0 is the reference, 1 the policy, above 1 goes on beyond it.
        average: its average over the updates, of a run with ``adapter.ema_decay``.
        trusted: whether the user's word is given for what they ask for.
        sampler: another than the run's own: ``euler``, for a policy of flow matching.
        pipeline: the one that the run was begun with, where it has no name.
        method: the class of the one that it was begun with, where it has no file.
        settings: ``model=…``, ``model_lora=…``, where the same model and LoRA are now.
        choices: of ``checkpoint``, which a message names besides the steps.

    Raises:
        UserError: the folder holds no such checkpoint, or one of another model; or the strength is
            no number from 0 on.
    """
    check_strengths([strength])
    if checkpoint == REFERENCE and strength != 1:
        raise UserError("--strength: the reference has none; leave it or --checkpoint out")
    own_parts = parts_of_run(settings, THE_MODEL).intersection(parts)
    config = load_run_config(run, settings, methods_of(run, trusted=trusted, known=method))
    if "model" not in own_parts:
        check_may_be_given(config)
    check_trusted(config, run, own_parts, trusted=trusted)
    analytic = config.sampler.variance == "analytic" and sampler is None
    if average and config.adapter.ema_decay is None:
        raise UserError(f"--ema: {run} keeps no average (adapter.ema_decay); leave it out")
    own = "policy_average" if average else "policy"
    folder, state = _read(run, checkpoint, choices, (own, KERNELS) if analytic else (own,))
    steps = config.sampler
    if sampler is not None:
        steps = steps.model_copy(update={"name": sampler, "eta": 1.0})
    pretrained = reference_of(config, pipeline, torch.float32)
    model = load_model(pretrained, steps, as_begun(config.adapter), best_device())
    if checkpoint != REFERENCE:  # a fresh adapter changes nothing
        put_policy(model.network, state[own], folder, config.model)
        model.adapter.scale(strength)
    if analytic:
        load_kernels(model, folder)
    return model, config, folder


def _read(
    run: Path, checkpoint: str, choices: Collection[str], groups: Sequence[str]
) -> tuple[Path, dict[str, dict[str, Tensor]]]:
    """A checkpoint's folder and some of its tensors; the reference's kernels are in every one."""

    def read(folder: Path) -> tuple[Path, dict[str, dict[str, Tensor]]]:
        return folder, {group: load_group(folder, group) for group in groups}

    if checkpoint in (LAST, REFERENCE):
        return last_whole(run, read)
    return read(_best(run) if checkpoint == BEST else _step(run, checkpoint, choices))


def _best(run: Path) -> Path:
    """Where the guard's best policy is, as the last checkpoint remembers it."""
    end = last_whole(run, load_checkpoint)
    guard = end.state.get("guard")
    if not guard or not guard["best"]:
        raise UserError(f"--checkpoint: {run} has no best, which a guard keeps; use last or step-N")
    folder = best_folder(run, guard["best"]["update"])
    if not folder.is_dir():
        raise UserError(f"--checkpoint: {folder} is gone; use last or step-N")
    return folder


def _step(run: Path, checkpoint: str, choices: Collection[str]) -> Path:
    found = {int(path.name.removeprefix("step-")): path for path in list_checkpoints(run)}
    digits = checkpoint.removeprefix("step-")
    if checkpoint.startswith("step-") and digits.isdecimal() and int(digits) in found:
        return found[int(digits)]
    there = ", ".join(path.name for path in found.values())
    raise UserError(
        f"--checkpoint: {run} has no {checkpoint}; use {', '.join(choices)}"
        + (f" or one of {there}" if there else "; there is no checkpoint yet")
    )
