"""A run's figures: the same prompts and seeds before and after, held against the exact tilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nablaflow.evaluation.bank_size import bank_for_tilt
from nablaflow.evaluation.measure import (
    SECOND,
    Subject,
    bank_of,
    measure_reference,
    sample_and_measure,
)
from nablaflow.evaluation.plan import EvaluationPlan
from nablaflow.evaluation.sampled import ImageLook, Sampled
from nablaflow.metrics.summary import Column, SampleSet, Summary, Yardstick, add_figures
from nablaflow.progress import StartProgress
from nablaflow.typing import Images

_NO_TILT: Column = {"distance_to_tilt": None, "distance_to_tilt_se": None}


@dataclass(frozen=True)
class Evaluation:
    """The figures and the samples behind them.

    Attributes:
        bank: images of the reference bank that were looked at.
        yardstick: what the figures are measured by.
        second: the reference's, by other noise, which metrics measure distances from; None where
            ``evaluation.metrics`` names none.
    """

    summary: Summary
    reference: Sampled
    policy: Sampled
    bank: int
    yardstick: Yardstick
    second: Sampled | None = None

    def column(self, samples: SampleSet) -> Column:
        """The figures of further samples, as the policy's in the summary."""
        found = self.yardstick.column(samples)
        return found if self.bank else found | _NO_TILT

    @property
    def before(self) -> Images:
        return self.reference.images

    @property
    def after(self) -> Images:
        return self.policy.images

    @property
    def prompts(self) -> list[str]:
        """One for each image before, and after."""
        return self.policy.prompts


def evaluate(
    subject: Subject,
    progress: StartProgress,
    looks: Mapping[str, ImageLook] | None = None,
    *,
    bank: SampleSet | None = None,
) -> Evaluation:
    """Measure reference, policy and, with ``evaluation.bank``, the exact tilt.

    Without a bank the reference's own samples stand in for it: distances to the reference are
    then measured against them, and the exact tilt is left out. The metrics that
    ``evaluation.metrics`` names stand beside the figures of reference and policy.

    Args:
        bank: what `bank_of` gives, where it is known; None: it is looked at now.
    """
    model, reward = subject.model, subject.reward
    prompts, config = subject.prompts, subject.config
    plan = EvaluationPlan.of_summary(config.evaluation, len(prompts), model.device)
    looks = {**plan.looks(), **(looks or {})}
    reference = measure_reference(subject, reward, progress, "reference", looks=looks)
    policy = sample_and_measure(
        model, reward, prompts, config, progress, "aligned model", looks=looks
    )
    bank = bank_of(subject, progress) if bank is None else bank
    found = bank or reference.samples
    yardstick = Yardstick.of(found, subject.beta)
    summary = yardstick.summary(reference.samples, policy.samples)
    if bank is None:
        summary = _without_tilt(summary)
    if summary["exact_tilt"] is None:
        enough = bank_for_tilt(found.rewards, found.prompt_index, subject.beta)
        summary["bank_for_tilt"] = enough
    looked_at = 0 if bank is None else len(bank)
    if not plan.metrics:
        return Evaluation(summary, reference, policy, looked_at, yardstick)
    second = measure_reference(
        subject, None, progress, "reference again", looks=looks, purpose=SECOND
    )
    told = progress("measure the metrics", 2 * len(plan.metrics))
    both = [plan.measure(own, second, config.evaluation.seed, told) for own in (reference, policy)]
    summary["reference"] = add_figures(summary["reference"], both[0])
    summary["policy"] = add_figures(summary["policy"], both[1])
    return Evaluation(summary, reference, policy, looked_at, yardstick, second)


def _without_tilt(summary: Summary) -> Summary:
    """No bank, no tilt: nothing may be quoted from a handful of reweighted samples."""
    itself = {"distance_to_reference": None, "distance_to_reference_se": None}
    return {
        **summary,
        "reference": {**summary["reference"], **_NO_TILT, **itself},
        "policy": {**summary["policy"], **_NO_TILT},
        "exact_tilt": None,
        "effective_sample_size": None,
        "closing": None,
        "closing_se": None,
    }
