"""A run's rewards: the one that is trained, and the one that a guard holds out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models.pipelines import PipelineModel
from nablaflow.prompts.sets import prompt_metadata
from nablaflow.rewards import NamedReward, goes_ahead, load, probe, tell_metadata


def load_reward(config: Config, given: NamedReward | None) -> NamedReward:
    """The reward, told what stands beside the prompts; a given one is in place of the settings'."""
    reward = replace(given or load(config.reward), timeout=config.training.reward_timeout)
    tell_metadata(reward, lambda: _metadata(config))
    return reward


def load_held_out(
    config: Config,
    spec: str | dict[str, float],
    trained: str,
    model: PipelineModel,
    prompts: list[str],
) -> NamedReward:
    """The one that is only measured, tried on the guard's prompts.

    Args:
        trained: name of the reward that is trained.
    """
    try:
        found = load(spec)
        tell_metadata(found, lambda: _metadata(config))
        height, width = model.image_size
        probe(found, height=height, width=width, device=model.device, prompts=prompts)
    except UserError as error:
        raise UserError(f"guard.held_out.reward: {error}") from error
    if found.name == trained:
        raise UserError(
            f"guard.held_out.reward: {trained} is the reward that is trained; use another"
        )
    return found


def _metadata(config: Config) -> dict[str, Any]:
    """What stands beside each prompt that a reward of this run may see."""
    guards = None if config.guard is None else config.guard.prompts
    sources = (config.prompts, config.evaluation.prompts, guards)
    return prompt_metadata(*sources, seed=config.seed)


def ahead_told(config: Config, model: PipelineModel, reward: NamedReward) -> list[str]:
    """A line about a reward that scores beside the sampling."""
    if not goes_ahead(reward, model.device):
        return []
    training = config.training
    whole = training.prompts_per_update * training.images_per_prompt
    at_once = min(training.rollout_batch or whole, training.decode_batch or whole)
    how = "it scores images while others are made"
    if at_once == whole:
        how += ", once training.rollout_batch=… has a rollout made in parts"
    return [f"reward: the work of {reward.name} is done elsewhere; {how}"]
