"""The guard that a configuration asks for; what it leaves open is chosen here."""

from __future__ import annotations

from pathlib import Path

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.evaluation.guard import Guard
from nablaflow.evaluation.reference_states import ReferenceStates
from nablaflow.models.pipelines import PipelineModel
from nablaflow.prompts.sets import load_prompts
from nablaflow.rewards import NamedReward
from nablaflow.runs.rewards import load_held_out

LOOKS, LOOKED_AT = 5, 32  # of a guard that is left to itself: looks, and images of each


def make_guard(
    config: Config, prompts: list[str], model: PipelineModel, reward: NamedReward, fingerprint: str
) -> Guard | None:
    """The guard that the configuration asks for.

    Args:
        fingerprint: of the pretrained weights; empty where none of their samples are kept.

    Raises:
        UserError: too few images for its prompts, or a held-out reward that is not one.
    """
    settings = config.guard
    if settings is None:
        return None
    if settings.prompts is not None:
        prompts = load_prompts(settings.prompts, Path(), config.seed)
    by_time = settings.every == "auto" and config.training.minutes is not None
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
        held_out = load_held_out(config, settings.held_out.reward, reward.name, model, prompts)
    of_reference = ReferenceStates(model, config.sampler, fingerprint)
    batch = config.evaluation.batch
    looks = LOOKS if by_time else None
    return Guard(settings, prompts, model, reward, held_out, batch, of_reference, looks)
