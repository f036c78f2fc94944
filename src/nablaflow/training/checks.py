"""Whether the parts of a configuration fit each other; every mistake is found before training."""

from __future__ import annotations

from nablaflow.errors import UserError
from nablaflow.methods import METHODS, Method
from nablaflow.models.pipelines import PipelineModel
from nablaflow.rewards import NamedReward, probe, require_gradient
from nablaflow.training.config import Config


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


def check_prompts(config: Config, model: PipelineModel) -> None:
    """Refuse to train a text model without texts."""
    if config.prompts is None and model.takes_prompts:
        raise UserError(
            f"prompts: null is for unconditional models, and this is a "
            f"{type(model.pipeline).__name__}; give a list of prompts, or a file"
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
