"""Numbers of images that no memory here could hold are refused before any work."""

from __future__ import annotations

import math

import psutil

from nablaflow.errors import UserError
from nablaflow.models.pipelines import PipelineModel
from nablaflow.training.config import Config

_FLOAT = 4  # bytes


def check_fits(config: Config, model: PipelineModel) -> None:
    """Hold what a run keeps in memory at once, at the very least, against what the machine has.

    Raises:
        UserError: it names the setting, and how many would fit.
    """
    training, evaluation = config.training, config.evaluation
    state = _FLOAT * math.prod(model.state_shape)
    trajectory = (2 * config.strata + 1) * state
    group = training.images_per_prompt * trajectory
    check_count("training.images_per_prompt", training.images_per_prompt, trajectory)
    check_count("training.prompts_per_update", training.prompts_per_update, group)
    check_count("evaluation.n", evaluation.n, 2 * (state + image_bytes(model)))
    check_count("evaluation.bank", evaluation.bank, state // 2)
    if config.guard is not None and config.guard.n != "auto":
        check_count("guard.n", config.guard.n, state)


def image_bytes(model: PipelineModel) -> int:
    """Bytes of one image in float32."""
    return 3 * math.prod(model.image_size) * _FLOAT


def check_count(name: str, count: int, each: int) -> None:
    """Refuse a count that memory has no room for.

    Args:
        name: of the setting.
        each: bytes of one.

    Raises:
        UserError: it says how many would fit.
    """
    memory = psutil.virtual_memory().total
    if count * each > memory:
        raise UserError(
            f"{name}: {count:,} of {each:,} bytes each are more than this machine's memory; at "
            f"most {memory // each:,} would fit"
        )
