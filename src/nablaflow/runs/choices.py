"""Settings that a run chooses by itself where its configuration leaves them to it.

What was chosen stands in the run's config.yaml, so that a resumed run and a measurement see it.
"""

from __future__ import annotations

import math
from typing import Any

from nablaflow.config.recipe import Config
from nablaflow.methods.tilt_rule import TiltRule, Undecided
from nablaflow.models.adapters import LoraAdapter
from nablaflow.models.pipelines import PipelineModel
from nablaflow.runs.folder import saved_config


def with_targets(config: Config, model: PipelineModel) -> Config:
    """With the names of the layers that the adapter is on."""
    if not isinstance(model.adapter, LoraAdapter):
        return config
    return _replaced(config, "adapter", targets=model.adapter.targets)


def with_beta(config: Config, beta: float) -> Config:
    """With the tilt that was found."""
    method = config.method.model_copy(update={"beta": beta})
    return config.model_copy(update={"method": method})


def undecided(config: Config) -> TiltRule | None:
    """The rule that the run finds its beta by, if its configuration has no number."""
    beta = getattr(config.method, "beta", None)
    return beta.rule if isinstance(beta, Undecided) else None


def as_chosen(config: Config) -> Config:
    """A configuration to resume, with what its run has chosen where it still leaves the choice."""
    saved = saved_config(config.output_dir)
    if saved is None:
        return config  # the caller says so
    if config.adapter.targets == "auto":
        config = _replaced(config, "adapter", targets=saved.adapter.targets)
    if config.flow and saved.flow and config.flow.channels == "auto":
        config = _replaced(config, "flow", channels=saved.flow.channels)
    if undecided(config):
        config = with_beta(config, getattr(saved.method, "beta", math.nan))
    return config


def _replaced(config: Config, group: str, **values: Any) -> Config:
    """With other values in one group of its settings."""
    return config.model_copy(update={group: getattr(config, group).model_copy(update=values)})
