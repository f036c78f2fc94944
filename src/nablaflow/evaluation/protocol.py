"""The paper's protocol: fixed prompts and seeds, for the reference and each checkpoint of a run.

Mean reward, within-prompt diversity and distance to the reference's own samples (arXiv 2412.07775,
section 4.1). Every model draws the same noise, but for the samples that distances are measured
from: those are a second set of the reference's, so that the reference's own distance is the floor
that any distance has at this number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nablaflow.errors import UserError
from nablaflow.evaluation.measure import (
    Evaluation,
    ImageLook,
    Sampled,
    StartProgress,
    Subject,
    evaluate,
    sample_and_measure,
)
from nablaflow.evaluation.policy_state import load_policy_state
from nablaflow.evaluation.spaces import Space, check_features, load_spaces
from nablaflow.metrics.bootstrap import Measured, Resampling
from nablaflow.metrics.catalog import DEFAULT, chosen_metrics
from nablaflow.metrics.contract import CHOSEN, Metric, View
from nablaflow.metrics.quadratic import euclidean
from nablaflow.rewards import NamedReward, recall
from nablaflow.storage.checkpoint import load_checkpoint, read_manifest

REWARDS = "rewards"
REFERENCE, GUARD_BEST = "reference", "guard-best"
SECOND = "yardstick"
"""Names the noise of the samples that distances are measured from."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured, its networks loaded.

    Attributes:
        features: the space that most metrics look at.
        metrics: by name.
        spaces: looks by name, those of ``metrics``.
        refused: metrics left out, and why.
    """

    features: str
    metrics: Mapping[str, Metric]
    spaces: Mapping[str, Space]
    refused: Mapping[str, str]

    @classmethod
    def of(
        cls, names: Sequence[str] | None, features: str, n: int, prompts: int, device: torch.device
    ) -> EvaluationPlan:
        """Choose metrics and load what they look through, before anything is sampled.

        Args:
            names: of metrics, each of which must be measured; None takes the default ones, less
                those that ``n`` images are too few for.
            features: a name of `spaces.FEATURES`.
            n: images of a model.
            prompts: among which they are spread.

        Raises:
            UserError: unknown metric or features, too few images, a missing package or weights.
        """
        check_features(features)
        metrics = chosen_metrics(DEFAULT if names is None else names)
        spaces = _spaces(metrics, features, device)
        refused = dict(_too_few(metrics, spaces, n, prompts))
        if names is not None and refused:
            raise UserError(next(iter(refused.values())))
        kept = {name: metric for name, metric in metrics.items() if name not in refused}
        for metric in kept.values():
            metric.ready()
        return cls(features, kept, spaces, refused)

    def looks(self) -> dict[str, ImageLook]:
        return {name: space.look for name, space in self.spaces.items()}

    def measure(
        self, own: Sampled, reference: Sampled, seed: int, told: Callable[[int], None]
    ) -> dict[str, Measured]:
        """Every figure of a model's images; the draws of each depend on the seed alone."""
        figures = {}
        for name, metric in self.metrics.items():
            resampling = Resampling(torch.Generator().manual_seed(seed))
            view, known = (self._view(metric.space, sampled) for sampled in (own, reference))
            figures[name] = metric.measure(view, known, resampling)
            told(1)
        return figures

    def _view(self, space: str, sampled: Sampled) -> View:
        index = sampled.samples.prompt_index
        if space == REWARDS:
            return View(sampled.samples.rewards, index, euclidean)
        return View(sampled.rows[space], index, self.spaces[space].distance)


def _spaces(metrics: Mapping[str, Metric], features: str, device: torch.device) -> dict[str, Space]:
    names = {metric.space for metric in metrics.values()} - {REWARDS}
    named = {name: features if name == CHOSEN else name for name in sorted(names)}
    loaded = load_spaces(set(named.values()), device)
    return {name: loaded[actual] for name, actual in named.items()}


def _too_few(
    metrics: Mapping[str, Metric], spaces: Mapping[str, Space], n: int, prompts: int
) -> Iterator[tuple[str, str]]:
    for name, metric in metrics.items():
        dim = 1 if metric.space == REWARDS else spaces[metric.space].dim
        least = metric.least(prompts, dim)
        if n < least:
            yield name, f"{name}: {n} images are too few, {least} are needed; use --n {least}"


@dataclass(frozen=True)
class ProtocolRow:
    """One model's figures.

    Attributes:
        name: ``reference``, ``policy``, ``guard-best``, or the checkpoint's folder.
        update: how many updates it has behind it.
    """

    name: str
    update: int
    figures: Mapping[str, Measured]

    def as_dict(self) -> dict[str, Any]:
        figures = {name: figure.as_dict() for name, figure in self.figures.items()}
        return {"name": self.name, "update": self.update, **figures}


@dataclass(frozen=True)
class Protocol:
    """The rows of a run, in order of updates, and what they were measured on."""

    plan: EvaluationPlan
    rows: Sequence[ProtocolRow]
    prompts: int
    n: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """What ``nablaflow eval --json`` has under ``protocol``."""
        return {
            "features": self.plan.features,
            "metrics": list(self.plan.metrics),
            "refused": dict(self.plan.refused),
            "prompts": self.prompts,
            "n": self.n,
            "seed": self.seed,
            "rows": [row.as_dict() for row in self.rows],
        }


def carry_out(
    subject: Subject,
    plan: EvaluationPlan,
    checkpoints: Sequence[Path],
    progress: StartProgress,
    best: Path | None = None,
) -> tuple[Evaluation, Protocol]:
    """Sample and measure the reference and every checkpoint; the last one is the policy.

    The reward scores the images of each model once, and not the second set of the reference's,
    of which no metric wants the rewards.

    Args:
        checkpoints: oldest first, one at least.
        best: checkpoint of the guard's best policy, where that is another than the last.

    Returns:
        The run's own figures, of the policy, and the protocol's.

    Raises:
        UserError: a checkpoint is damaged.
    """
    config, seed = subject.config, subject.config.evaluation.seed
    _load(subject, checkpoints[-1])
    # One reward for all rows: one that remembers is the last's, whose scores the summary has.
    recall(subject.reward, load_checkpoint(checkpoints[-1]).state.get("reward", {}))
    evaluation = evaluate(subject, progress, plan.looks())
    with subject.model.reference():
        second = _sampled(subject, plan, progress, "reference again", reward=None, purpose=SECOND)
    policy = _Model("policy", _update(checkpoints[-1]), checkpoints[-1])
    models = [*_between(checkpoints[:-1], best), policy]
    rows = list(_rows(subject, plan, evaluation, second, models, progress))
    return evaluation, Protocol(plan, rows, len(subject.prompts), config.evaluation.n, seed)


def _rows(
    subject: Subject,
    plan: EvaluationPlan,
    evaluation: Evaluation,
    second: Sampled,
    models: Sequence[_Model],
    progress: StartProgress,
) -> Iterator[ProtocolRow]:
    """The reference's row and those of ``models``, of which the last is the policy.

    The guard's best may be a kept checkpoint's policy, or the reference: it is measured once.
    """
    seed = subject.config.evaluation.seed
    told = progress("measure", len({0, *(model.update for model in models)}) * len(plan.metrics))
    figures = {0: plan.measure(evaluation.reference, second, seed, told)}
    yield ProtocolRow(REFERENCE, 0, figures[0])
    for model in models:
        if model.update not in figures:
            last = model is models[-1]
            own = evaluation.policy if last else _of_checkpoint(subject, plan, progress, model)
            figures[model.update] = plan.measure(own, second, seed, told)
        yield ProtocolRow(model.name, model.update, figures[model.update])


@dataclass(frozen=True)
class _Model:
    """A policy after ``update`` updates, of which no two differ at the same number of them."""

    name: str
    update: int
    folder: Path


def _between(kept: Sequence[Path], best: Path | None) -> list[_Model]:
    """What comes between the reference and the policy, in order of updates."""
    found = [_Model(folder.name, _update(folder), folder) for folder in kept]
    if best is not None:
        found.append(_Model(GUARD_BEST, _update(best), best))
    return sorted(found, key=lambda model: model.update)


def _of_checkpoint(
    subject: Subject, plan: EvaluationPlan, progress: StartProgress, model: _Model
) -> Sampled:
    _load(subject, model.folder)
    return _sampled(subject, plan, progress, model.name, reward=subject.reward)


def _load(subject: Subject, folder: Path) -> None:
    load_policy_state(subject.model.network, folder, subject.config.model)


def _sampled(
    subject: Subject,
    plan: EvaluationPlan,
    progress: StartProgress,
    what: str,
    *,
    reward: NamedReward | None,
    purpose: str = "evaluation",
) -> Sampled:
    return sample_and_measure(
        subject.model,
        reward,
        subject.prompts,
        subject.config,
        progress,
        what,
        looks=plan.looks(),
        purpose=purpose,
    )


def _update(folder: Path) -> int:
    return read_manifest(folder)["update"]
