"""A policy's figures at several strengths, and the strength that is at the tilt's mean reward.

The weights between the reference's, 0, and the policy's, 1, or beyond them: what a LoRA's scale is
in other programs. Training may go past the tilt; a strength below 1 then leads back, without more
of it (WiSE-FT, arXiv 2109.01903, on other grounds). That the mean reward is the tilt's does not say
that the images are: their diversity and distance are measured beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nablaflow.config.values import LARGEST
from nablaflow.errors import UserError
from nablaflow.evaluation.evaluate import Evaluation
from nablaflow.evaluation.measure import Subject, sample_and_measure
from nablaflow.evaluation.plan import EvaluationPlan
from nablaflow.evaluation.policy_state import LastPolicy
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.summary import Column, add_figures, closing
from nablaflow.progress import StartProgress


@dataclass(frozen=True)
class AtStrength:
    """What is measured at one strength.

    Attributes:
        strength: 0 is the reference, 1 the policy.
        figures: as the policy has them in ``summary.json``.
        closing: how much of the way to the tilt's mean reward is closed; None without a tilt.
    """

    strength: float
    figures: Column
    closing: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        value, se = (None, None) if self.closing is None else (self.closing.value, self.closing.se)
        return {"strength": self.strength, **self.figures, "closing": value, "closing_se": se}


@dataclass(frozen=True)
class Strengths:
    """All of them, from the weakest on."""

    rows: Sequence[AtStrength]

    def as_dict(self) -> dict[str, Any]:
        """What ``nablaflow eval --strength … --json`` has under ``strengths``."""
        found = self.at_tilt()
        value, se = (None, None) if found is None else (found.value, found.se)
        rows = [row.as_dict() for row in self.rows]
        return {"rows": rows, "at_tilt": value, "at_tilt_se": se}

    def at_tilt(self) -> Estimate | None:
        """The weakest strength whose mean reward is the tilt's, on straight lines between the rows.

        Its error is that of the way there, over the line's slope. The rows have their noise, the
        reference and the tilt in common, so between two of them it is between their errors.

        Returns:
            None without a tilt, or where no two neighbours have it between them.
        """
        for low, high in pairwise(self.rows):
            if low.closing is None or high.closing is None:
                return None
            if low.closing.value < 1.0 <= high.closing.value:
                slope = high.closing.value - low.closing.value
                part = (1.0 - low.closing.value) / slope
                width = high.strength - low.strength
                error = (1.0 - part) * low.closing.se + part * high.closing.se
                return Estimate(low.strength + part * width, error / slope * width)
        return None


def check_strengths(strengths: Sequence[float]) -> None:
    """Refuse what is no strength.

    Raises:
        UserError: one is no number from 0 on that float32 can hold.
    """
    for strength in strengths:
        if not 0 <= strength <= LARGEST:
            raise UserError(
                f"--strength: must be a number from 0 on that float32 can hold, not {strength:g}"
            )


def measure_strengths(
    subject: Subject,
    evaluation: Evaluation,
    last: LastPolicy,
    strengths: Sequence[float],
    progress: StartProgress,
) -> Strengths:
    """Sample and measure a policy at some strengths, from the noise of the evaluation.

    0 and 1 are what the evaluation has measured, and come with the others.

    Args:
        evaluation: of the same subject.
        last: the policy; the network has it again afterwards.
        strengths: finite ones from 0 on.
    """
    wanted = sorted({0.0, 1.0, *strengths})
    rows = list(_rows(subject, evaluation, last, wanted, progress))
    _put(subject, last, 1.0)
    return Strengths(rows)


def _rows(
    subject: Subject,
    evaluation: Evaluation,
    last: LastPolicy,
    strengths: Sequence[float],
    progress: StartProgress,
) -> Iterator[AtStrength]:
    summary = evaluation.summary
    start, goal = summary["reference"], summary["exact_tilt"]
    known = {0.0: start, 1.0: summary["policy"]}
    for strength in strengths:
        figures = known.get(strength)
        if figures is None:
            _put(subject, last, strength)
            figures = _measured(subject, evaluation, f"policy at strength {strength:g}", progress)
        yield AtStrength(strength, figures, closing(start, figures, goal))


def _measured(
    subject: Subject, evaluation: Evaluation, what: str, progress: StartProgress
) -> Column:
    """The figures of whichever network is active, by the metrics of ``evaluation.metrics`` too."""
    model, config, prompts = subject.model, subject.config, subject.prompts
    plan = EvaluationPlan.of_summary(config.evaluation, len(prompts), model.device)
    own = sample_and_measure(
        model, subject.reward, prompts, config, progress, what, looks=plan.looks()
    )
    column = evaluation.column(own.samples)
    if evaluation.second is None:
        return column
    told = progress("measure the metrics", len(plan.metrics))
    further = plan.measure(own, evaluation.second, config.evaluation.seed, told)
    return add_figures(column, further)


def _put(subject: Subject, last: LastPolicy, strength: float) -> None:
    last.put(subject.model.network, subject.config.model)
    subject.model.adapter.scale(strength)
