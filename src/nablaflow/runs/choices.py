"""Settings that a run chooses by itself where its configuration leaves them to it.

What was chosen stands in the run's config.yaml, so that a resumed run and a measurement see it.
"""

from __future__ import annotations

from typing import Any

from accelerate.utils import broadcast_object_list

from nablaflow.config.recipe import Config
from nablaflow.evaluation.beta import ChosenBeta, find_beta
from nablaflow.methods.tilt_rule import TiltRule, Undecided
from nablaflow.models.adapters import LoraAdapter
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import StartProgress
from nablaflow.rewards import NamedReward
from nablaflow.runs.begun_with import check_revision
from nablaflow.runs.checks import note_on_speed
from nablaflow.runs.saved_config import saved_config
from nablaflow.training.beginning import VALUE_EACH

BATCHES = ("micro_batch", "rollout_batch", "estimate_batch", "decode_batch")


def settle(
    config: Config,
    model: PipelineModel,
    reward: NamedReward,
    prompts: list[str],
    start: StartProgress,
    *,
    ends: bool,
) -> tuple[Config, list[str]]:
    """With the adapter's targets, the value and the beta that it leaves to the run, and lines.

    Args:
        ends: whether it is trained and comes to its end, where its strength is found.
    """
    config, told = with_value(with_targets(config, model), prompts, ends=ends)
    choices = [str(model.adapter.coverage), *note_on_speed(model), *told]
    rule = undecided(config)
    if rule is not None:
        found = _found_beta(rule, config, model, reward, prompts, start)
        config = with_beta(config, found.beta)
        choices.append(str(found))
    return config, choices


def _found_beta(
    rule: TiltRule,
    config: Config,
    model: PipelineModel,
    reward: NamedReward,
    prompts: list[str],
    start: StartProgress,
) -> ChosenBeta:
    """The main process's, on all of them, which sample for it together."""
    found = find_beta(rule, model, reward, prompts, start, config.evaluation.batch)
    return broadcast_object_list([found])[0]


def with_targets(config: Config, model: PipelineModel) -> Config:
    """With the names of the layers that the adapter is on."""
    if not isinstance(model.adapter, LoraAdapter):
        return config
    return _replaced(config, "adapter", targets=model.adapter.targets)


def with_value(config: Config, prompts: list[str], *, ends: bool) -> tuple[Config, list[str]]:
    """With what the method's value is, and a line where that costs samples, or too many.

    A fit has to have seen every prompt that is trained on.
    """
    left, n = config.method, config.training.value_samples
    method, told = left.settled(calibrated=config.calibrates and ends), []
    needed = VALUE_EACH * len(set(prompts))
    if method.needs_log_flow and not left.needs_log_flow:
        told = [
            f"method.value: contrastive, that is fitted to {n:,} samples of the reference "
            "(training.value_samples) before the first update; forward-looking needs none, and is "
            "further from the tilt"
        ]
        if n < needed:
            method = left.settled(calibrated=False)
            told = [
                f"method.value: forward-looking, since a fitted one takes {VALUE_EACH} samples of "
                f"each prompt; training.value_samples={needed} has it fitted, nearer to the tilt"
            ]
    return config.model_copy(update={"method": method}), told


def with_beta(config: Config, beta: float) -> Config:
    """With the tilt that was found."""
    method = config.method.model_copy(update={"beta": beta})
    return config.model_copy(update={"method": method})


def undecided(config: Config) -> TiltRule | None:
    """The rule that the run finds its beta by, if its configuration has no number."""
    beta = config.method.beta
    return beta.rule if isinstance(beta, Undecided) else None


def as_chosen(config: Config) -> Config:
    """A configuration to resume, with what its run has chosen where it still leaves the choice.

    Raises:
        UserError: its model is at another revision than the run was begun with.
    """
    saved = saved_config(config)
    if saved is None:
        return config  # the caller says so
    check_revision(config.model, saved)
    if config.model_hash is None:  # by name now: still the pipeline that the run was begun with
        config = config.model_copy(update={"model_hash": saved.model_hash})
    if config.model_lora is not None and config.model_lora_hash is None:
        config = config.model_copy(update={"model_lora_hash": saved.model_lora_hash})
    if config.adapter.start is not None and config.adapter.start_hash is None:
        config = _replaced(config, "adapter", start_hash=saved.adapter.start_hash)
    if config.adapter.targets == "auto":
        config = _replaced(config, "adapter", targets=saved.adapter.targets)
    if config.flow and saved.flow and config.flow.channels == "auto":
        config = _replaced(config, "flow", channels=saved.flow.channels)
    if undecided(config):
        config = with_beta(config, saved.method.beta)
    config = config.model_copy(update={"method": config.method.settled_as(saved.method)})
    return _with_saved_batches(config, saved)


def _with_saved_batches(config: Config, saved: Config) -> Config:
    """The run's, but under another budget, which is a reason to choose anew."""
    training, before = config.training, saved.training
    if training.memory_budget_gb != before.memory_budget_gb:
        return config
    left = [name for name in BATCHES if getattr(training, name) is None]
    return _replaced(config, "training", **{name: getattr(before, name) for name in left})


def _replaced(config: Config, group: str, **values: Any) -> Config:
    """With other values in one group of its settings."""
    return config.model_copy(update={group: getattr(config, group).model_copy(update=values)})
