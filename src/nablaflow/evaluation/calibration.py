"""The strength at which a policy's mean reward is the exact tilt's, found by sampling.

The tilt is the one distribution of its kind with its mean reward, so a policy with more reward than
that has gone past it. Between the reference and what was trained lie policies that have not, see
`nablaflow.evaluation.strengths`; they are looked at from the trained one down, a quarter at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nablaflow.evaluation.measure import Subject, sample_and_measure
from nablaflow.evaluation.strengths import AtStrength, Strengths
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.reward import reward_mean
from nablaflow.metrics.summary import SampleSet
from nablaflow.metrics.tilt import ImportanceWeights
from nablaflow.models.adapters import load_trainable_state, trainable_state
from nablaflow.progress import StartProgress

_STEP = 0.25
_NOISE = "calibration"
"""Names the noise, which is not that of the figures."""


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
        way: share of the way to the tilt's mean reward at strength 1; None: the bank does not tell.
        strength: with its error; exactly 1 where the policy has not passed the tilt.
    """

    way: Estimate | None
    strength: Estimate

    def __str__(self) -> str:
        if self.way is None:
            return "the reference bank does not tell the exact tilt's mean reward; nothing is done"
        way = f"{self.way.value:.0%} ± {self.way.se:.0%} of the way to the exact tilt's mean reward"
        if self.strength.value == 1.0:
            return f"{way}, not past it; the policy stays as it is"
        found = f"{self.strength.value:.3g} ± {self.strength.se:.2g}"
        return f"{way}; from here on the policy is what was trained at strength {found}"


_AS_IT_IS = Estimate(1.0, 0.0)


def calibrate(subject: Subject, bank: SampleSet, progress: StartProgress) -> Calibration:
    """Find it, and leave the network with the policy at that strength.

    Args:
        bank: of the reference, on the same prompts.
    """
    tilt = ImportanceWeights.of_rewards(bank.rewards, bank.prompt_index, subject.beta)
    start = reward_mean(bank.rewards, bank.prompt_index)
    goal = reward_mean(bank.rewards, bank.prompt_index, tilt.weights)
    far = goal.value - start.value
    if not tilt.trustworthy or abs(far) <= 2.0 * math.hypot(start.se, goal.se):
        return Calibration(None, _AS_IT_IS)
    rows: list[AtStrength] = []
    for row in _downwards(subject, start.value, far, progress):
        rows.insert(0, row)
        if row.closing is not None and row.closing.value < 1.0:
            break
    found = _AS_IT_IS if len(rows) == 1 else Strengths(rows).at_tilt()
    assert found is not None  # the last row is below the tilt, and the one above it is not
    subject.model.adapter.settle(found.value)
    return Calibration(rows[-1].closing, found)


def _downwards(
    subject: Subject, start: float, far: float, progress: StartProgress
) -> Iterator[AtStrength]:
    """From the policy to the reference; the network has the policy again after each."""
    network, adapter = subject.model.network, subject.model.adapter
    policy = trainable_state(network)
    for quarter in range(round(1 / _STEP), 0, -1):
        strength = quarter * _STEP
        adapter.scale(strength)
        samples = sample_and_measure(
            subject.model,
            subject.reward,
            subject.prompts,
            subject.config,
            progress,
            f"policy at strength {strength:g}",
            purpose=_NOISE,
        ).samples
        load_trainable_state(network, policy)
        adapter.scale(1.0)
        mean = reward_mean(samples.rewards, samples.prompt_index)
        way = Estimate((mean.value - start) / far, mean.se / abs(far))
        yield AtStrength(strength, {}, way)
    yield AtStrength(0.0, {}, Estimate(0.0, 0.0))
