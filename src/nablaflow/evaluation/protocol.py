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

from torch import Tensor

from nablaflow.evaluation.evaluate import Evaluation, evaluate
from nablaflow.evaluation.measure import SECOND, Subject, measure_reference, sample_and_measure
from nablaflow.evaluation.plan import EvaluationPlan
from nablaflow.evaluation.policy_state import LastPolicy, put_policy
from nablaflow.evaluation.sampled import Sampled
from nablaflow.metrics.estimate import Estimate
from nablaflow.progress import StartProgress
from nablaflow.rewards import recall
from nablaflow.storage.checkpoint import load_trained
from nablaflow.storage.manifest import policy_mark, update_of
from nablaflow.storage.whole import each_whole

Policy = dict[str, Tensor]
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
    best: tuple[Path, Policy] | None = None,
) -> tuple[Evaluation, Protocol]:
    """Sample and measure the reference, checkpoints and the policy, which is the last one's.

    The reward scores the images of each model once, and not the second set of the reference's,
    of which no metric wants the rewards.

    Args:
        last: the policy.
        before: older checkpoints, oldest first; of each its policy is read, as it was trained, when
            its turn comes, and one that is damaged is named and left out.
        best: checkpoint of the guard's best policy, and the policy, where that is another than the
            last.

    Returns:
        The run's own figures, of the policy, and the protocol's.

    Raises:
        UserError: a checkpoint is of another model.
    """
    config, seed = subject.config, subject.config.evaluation.seed
    last.put(subject.model.network, config.model)
    # One reward for all rows: one that remembers is the last's, whose scores the summary has.
    recall(subject.reward, last.reward)
    evaluation = evaluate(subject, progress, plan.looks())
    second = evaluation.second or _second(subject, plan, progress)
    rows = list(_rows(subject, plan, evaluation, second, before, best, last, progress))
    return evaluation, Protocol(plan, rows, len(subject.prompts), config.evaluation.n, seed)


def _rows(
    subject: Subject,
    plan: EvaluationPlan,
    evaluation: Evaluation,
    second: Sampled,
    before: Sequence[Path],
    best: tuple[Path, Policy] | None,
    last: LastPolicy,
    progress: StartProgress,
) -> Iterator[ProtocolRow]:
    """The reference's row, those of ``before`` and ``best`` in order of updates, the policy's.

    The guard's best may be a kept checkpoint's policy, or the reference: it is measured once. Or it
    is what was trained until the same update as the last, which a calibration has weakened since.
    """
    seed = subject.config.evaluation.seed
    known = {} if best is None else dict([best])
    folders = sorted([*before, *known], key=update_of)
    marks = {REFERENCE, *map(_mark, folders), _mark(last.folder, trained=False)}
    told = progress("measure", len(marks) * len(plan.metrics))
    figures = {REFERENCE: plan.measure(evaluation.reference, second, seed, told)}
    yield ProtocolRow(REFERENCE, 0, figures[REFERENCE])
    for folder, policy in each_whole(folders, lambda path: known.get(path) or load_trained(path)):
        if (mark := _mark(folder)) not in figures:
            put_policy(subject.model.network, policy, folder, subject.config.model)
            own = _sampled(subject, plan, progress, folder.name)
            figures[mark] = plan.measure(own, second, seed, told)
        name = GUARD_BEST if folder in known else folder.name
        yield ProtocolRow(name, update_of(folder), figures[mark])
    if (mark := _mark(last.folder, trained=False)) not in figures:
        figures[mark] = plan.measure(evaluation.policy, second, seed, told)
    yield ProtocolRow("policy", last.update, figures[mark])


def _mark(folder: Path, *, trained: bool = True) -> str:
    """Tells policies apart, by their checkpoints; before any update it is the reference.

    Args:
        trained: as in `policy_mark`.
    """
    if update_of(folder) == 0:
        return REFERENCE
    return policy_mark(folder, trained=trained) or folder.name


def _second(subject: Subject, plan: EvaluationPlan, progress: StartProgress) -> Sampled:
    looks = plan.looks()
    return measure_reference(
        subject, None, progress, "reference again", looks=looks, purpose=SECOND
    )


def _sampled(subject: Subject, plan: EvaluationPlan, progress: StartProgress, what: str) -> Sampled:
    return sample_and_measure(
        subject.model,
        subject.reward,
        subject.prompts,
        subject.config,
        progress,
        what,
        looks=plan.looks(),
    )
