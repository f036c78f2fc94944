"""The paper's protocol: fixed prompts and seeds, for the reference and each checkpoint of a run.

Mean reward, within-prompt diversity and distance to the reference's own samples (arXiv 2412.07775,
section 4.1). Every model draws the same noise, but for the samples that distances are measured
from: those are a second set of the reference's, so that the reference's own distance is the floor
that any distance has at this number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow.evaluation.measure import (
    SECOND,
    Evaluation,
    Subject,
    evaluate,
    sample_and_measure,
)
from nablaflow.evaluation.plan import EvaluationPlan
from nablaflow.evaluation.policy_state import LastPolicy, load_policy_state
from nablaflow.evaluation.sampled import Sampled
from nablaflow.metrics.estimate import Estimate
from nablaflow.progress import StartProgress
from nablaflow.rewards import NamedReward, recall
from nablaflow.storage.checkpoint import read_manifest

REFERENCE, GUARD_BEST = "reference", "guard-best"


@dataclass(frozen=True)
class ProtocolRow:
    """One model's figures.

    Attributes:
        name: ``reference``, ``policy``, ``guard-best``, or the checkpoint's folder.
        update: how many updates it has behind it.
    """

    name: str
    update: int
    figures: Mapping[str, Estimate]

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
    last: LastPolicy,
    before: Sequence[Path],
    progress: StartProgress,
    best: Path | None = None,
) -> tuple[Evaluation, Protocol]:
    """Sample and measure the reference, checkpoints and the policy, which is the last one's.

    The reward scores the images of each model once, and not the second set of the reference's,
    of which no metric wants the rewards.

    Args:
        last: the policy.
        before: older checkpoints, oldest first.
        best: checkpoint of the guard's best policy, where that is another than the last.

    Returns:
        The run's own figures, of the policy, and the protocol's.

    Raises:
        UserError: a checkpoint is damaged.
    """
    config, seed = subject.config, subject.config.evaluation.seed
    last.put(subject.model.network, config.model)
    # One reward for all rows: one that remembers is the last's, whose scores the summary has.
    recall(subject.reward, last.reward)
    evaluation = evaluate(subject, progress, plan.looks())
    second = evaluation.second or _second(subject, plan, progress)
    models = [*_between(before, best), _Model("policy", last.update, last.folder)]
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
    load_policy_state(subject.model.network, model.folder, subject.config.model)
    return _sampled(subject, plan, progress, model.name, reward=subject.reward)


def _second(subject: Subject, plan: EvaluationPlan, progress: StartProgress) -> Sampled:
    with subject.model.reference():
        return _sampled(subject, plan, progress, "reference again", reward=None, purpose=SECOND)


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
