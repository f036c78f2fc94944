"""A run measured again: its own figures, and the protocol's for each of its checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nablaflow.config.overrides import parse_override
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.evaluation.bank_size import BankSize
from nablaflow.evaluation.fit import policy_fit
from nablaflow.evaluation.measure import Subject
from nablaflow.evaluation.plan import EvaluationPlan
from nablaflow.evaluation.policy_state import LastPolicy
from nablaflow.evaluation.protocol import carry_out
from nablaflow.evaluation.strengths import check_strengths, measure_strengths
from nablaflow.methods import Method
from nablaflow.models import LivePipeline
from nablaflow.progress import Progress, show
from nablaflow.prompts.sets import Source
from nablaflow.prompts.source import check_source
from nablaflow.report.figures import save_figure
from nablaflow.report.protocol import protocol_curves
from nablaflow.rewards import CALLABLE, NamedReward
from nablaflow.runs.accelerator import fresh_accelerator
from nablaflow.runs.agreement import check_same
from nablaflow.runs.pretrained import check_may_be_given
from nablaflow.runs.saved_config import check_is_run, load_run_config
from nablaflow.runs.setup import Parts, prepare
from nablaflow.runs.trust import THE_MODEL, check_trusted, methods_of, parts_of_run
from nablaflow.storage.files import folder_fault
from nablaflow.storage.run_folder import CURVES, place_fault
from nablaflow.storage.whole import checkpoints_before, guards_best, last_whole, steady


def evaluate_run(
    folder: Path,
    n: int | None,
    *,
    features: str = "pixels",
    metrics: Sequence[str] | None = None,
    only_last: bool = False,
    strengths: Sequence[float] = (),
    prompts: Source | None = None,
    settings: Sequence[str] = (),
    trusted: bool = False,
    console: Console | None = None,
    reward: NamedReward | None = None,
    is_own: bool = False,
    pipeline: LivePipeline | None = None,
    method: type[Method] | None = None,
) -> dict[str, Any]:
    """Measure a run's checkpoints again; writes nothing.

    Args:
        n: images of each model; None: as many as the run's own evaluation. For fewer than those,
            as many fewer of the reference bank are looked at, see `BankSize`.
        features: what images are compared by, see `nablaflow.evaluation.spaces`.
        metrics: names of `metrics.catalog.METRICS`; None: the default ones that ``n`` is enough
            for.
        only_last: leave the checkpoints before the last out, the guard's best among them.
        strengths: of the last checkpoint, to be measured besides.
        prompts: in place of the run's own, which are then not read; all that a recipe may have as
            ``prompts``. The exact tilt, which is of the run's own, is left out.
        settings: ``reward=…``, in place of the run's own; ``model=…`` and ``model_lora=…``, where
            the same model and LoRA are now.
        trusted: whether the user's word is given for what the run asks for, see
            `nablaflow.runs.trust`.
        reward: a function, in place of the run's own reward.
        is_own: whether it is the run's own, as the session that trained it has it.
        pipeline: the one that the run was begun with, where it has no name.
        method: the class of the one that it was begun with, where it has no file.

    Returns:
        What ``summary.json`` has of figures, how many images of the reference bank they are
        measured by under ``bank``, what `nablaflow.evaluation.fit` says under ``fit`` (None for
        another reward than the run's), the protocol's under ``protocol``, what
        ``training.calibrate`` made of the policy under ``calibrated``, if it did, and, where
        strengths are given, what `nablaflow.evaluation.strengths` says under ``strengths``; nothing
        on other processes than the main one.

    Raises:
        UserError: the folder holds no run, or no checkpoint yet; a strength is none; or as
            `EvaluationPlan.of` and `nablaflow.prompts.sets.find_prompts` say.
    """
    check_strengths(strengths)
    config, own, bank = _to_measure(
        folder, n, prompts, settings, trusted=trusted, reward=reward, method=method
    )
    if "model" not in own or pipeline is not None:
        check_may_be_given(config)
        own -= {"model"}
    check_trusted(config, folder, own, trusted=trusted)
    with steady(folder) as place, fresh_accelerator():
        last = last_whole(place, LastPolicy.read)
        before = [] if only_last else checkpoints_before(place, last.folder)
        parts = prepare(config, folder, reward, last.folder, pipeline=pipeline)
        # Beside a training each process may have come to another moment of it.
        best = None if only_last else guards_best(place, last.guard, last.policy)
        kept = [] if best is None else [best[0]]
        measured = [checkpoint.name for checkpoint in (*before, last.folder, *kept)]
        check_same({"checkpoints": measured})
        n = config.evaluation.n
        main = parts.accelerator.is_main_process
        parts.tell(parts.notes)
        plan = EvaluationPlan.of(metrics, features, n, len(parts.evaluated), parts.model.device)
        with show(console) if main else Progress() as progress:
            started = progress.start
            subject = replace(parts.subject, bank=bank)
            evaluation, protocol = carry_out(subject, plan, last, before, started, best)
            scaled: dict[str, Any] = {}
            if strengths:
                rows = measure_strengths(subject, evaluation, last, strengths, started)
                scaled = {"strengths": rows.as_dict()}
            own_reward = is_own or "reward" in own or reward_is(config, reward)
            fit = fit_of_run(parts, subject, last) if own_reward else None
        parts.tell(bank.note(evaluation.bank, "without --n all are"))
        parts.accelerator.end_training()
    if not main:
        return {}
    looked_at = {"bank": evaluation.bank, "fit": fit, "protocol": protocol.as_dict()}
    figures = {**evaluation.summary, **looked_at, **scaled}
    if last.calibrated is not None:
        figures["calibrated"] = last.calibrated
    if prompts is not None or not own_reward:  # the run's own tilt is another one
        figures.pop("bank_for_tilt", None)
    return figures


def _to_measure(
    folder: Path,
    n: int | None,
    prompts: Source | None,
    settings: Sequence[str],
    *,
    trusted: bool,
    reward: NamedReward | None,
    method: type[Method] | None,
) -> tuple[Config, set[str], BankSize]:
    """The run's configuration with what takes its own's place; the parts that stay its own.

    And how much of its reference bank ``n`` images need.
    """
    # The guard watches training, with rewards and prompts of its own, and trackers are told of it.
    overrides = ["guard=null", "training.trackers=[]"]
    overrides += [] if prompts is None else _measured_on(prompts)
    own = parts_of_run(settings, ("reward", *THE_MODEL))
    own -= set() if prompts is None else {"prompts", "evaluation"}
    own -= {"reward"} if reward else set()
    find = methods_of(folder, trusted=trusted, known=method)
    config = load_run_config(folder, [*overrides, *settings], find)
    measured = config.evaluation
    if n is None:
        return config, own, BankSize.all_of(measured.bank)
    bank = BankSize.for_images(measured.bank, measured.n, n)
    return with_images(config, n), own, bank


def with_images(config: Config, n: int) -> Config:
    """With another number of images that are measured."""
    evaluation = config.evaluation.model_copy(update={"n": n})
    return config.model_copy(update={"evaluation": evaluation})


def reward_is(config: Config, reward: NamedReward | None) -> bool:
    """Whether a function is the one that the run was trained by, which no file has."""
    return reward is not None and config.reward == f"{CALLABLE}{reward.name}"


def fit_of_run(parts: Parts, subject: Subject, last: LastPolicy) -> dict[str, Any] | None:
    """How much of its own target the last policy follows; None where the method states none."""
    config, networks = subject.config, parts.trainer.networks
    assert isinstance(config.method, Method)
    last.put(subject.model.network, config.model)
    networks.take(last.found)
    fit = policy_fit(
        networks,
        config.method,
        subject.prompts,
        seed=config.evaluation.seed,
        batch=config.evaluation.batch,
    )
    return None if fit is None else fit.as_dict()


def _measured_on(prompts: Source) -> list[str]:
    """Overrides for prompts that take the place of the run's, those trained on included."""
    value = json.dumps(prompts, ensure_ascii=False)  # which YAML reads, quotes and all
    apart = ("evaluation.prompts=null", "evaluation.hold_out=0.0", "evaluation.bank=0")
    return [f"prompts={value}", *apart]


def given_prompts(text: str) -> Source:
    """What ``--prompts`` names: a source in YAML where it is a list or a mapping and no file.

    Anything else is a path, a set or a hub id as it stands, whatever YAML would make of it.

    Raises:
        UserError: a list or a mapping that is no YAML, or no source of prompts.
    """
    if not text.lstrip().startswith(("[", "{")) or os.path.exists(text):
        return text
    try:
        return check_source(parse_override(f"prompts={text}")[1])
    except ValueError as error:
        raise UserError(f"prompts: {error}") from None


def check_curves(run: Path, out: Path | None) -> None:
    """Find out before the work whether the curves can be written: to the run, or to ``out``.

    Raises:
        UserError: the folder holds no run, or nothing can be written there.
    """
    check_is_run(run)
    fault = folder_fault(run) if out is None else place_fault(out)
    if fault is not None:
        raise UserError(f"--out: {fault}; give another folder")


def write_curves(protocol: dict[str, Any], folder: Path) -> Path:
    """Draw the protocol's figures over training into a folder.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / CURVES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(protocol_curves(protocol), path, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"--out: cannot write {path} ({error.strerror})") from error
    return path
