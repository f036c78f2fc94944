"""The strength at which a policy's mean reward is the exact tilt's, found by sampling.

The tilt is the one distribution of its kind with its mean reward, so a policy with more reward than
that has gone past it. Between the reference and what was trained lie policies that have not, see
`nablaflow.evaluation.strengths`. After the trained one the next quarter is looked at beyond where a
straight line has the tilt, and from there one quarter after another, until a parabola through the
last two and the reference tells where the tilt is. (By straight lines alone it would be missed: the
less there is left to gain, the less a strength adds.) Where a method's shifts have the tilt's shape
and not its length, as the means of a few kernels of fixed width have, a policy that falls short is
looked at upwards alike, to twice its strength at most: what had to go further, with another reward
than the ones this was found on, did not keep its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nablaflow.evaluation.measure import Subject, sample_and_measure
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.reward import reward_mean
from nablaflow.metrics.summary import SampleSet, part_of_way
from nablaflow.metrics.tilt import ImportanceWeights
from nablaflow.models.adapters import load_trainable_state
from nablaflow.progress import StartProgress

_STEP = 0.25
_BEYOND = _STEP / 2
"""How far beyond what was measured the parabola is trusted."""
_MOST = 2.0
"""Strength beyond which nothing is looked at."""
_NOISE = "calibration"
"""Names the noise, which is not that of the figures."""


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
        way: share of the way to the tilt's mean reward at strength 1; None: the bank does not tell.
        strength: with its error; exactly 1 where the policy is at the tilt by two standard errors,
            or short of it and not to be strengthened, or in vain.
        short: whether it is the last of these.
    """

    way: Estimate | None
    strength: Estimate
    short: bool = False

    def __str__(self) -> str:
        if self.way is None:
            return "the reference bank does not tell the exact tilt's mean reward; nothing is done"
        way = f"{self.way.value:.0%} ± {self.way.se:.0%} of the way to the exact tilt's mean reward"
        if self.strength.value == 1.0:
            passed = "not past it" if self.way.value < 1.0 else "past it by what chance may do"
            if self.short:
                passed = "and short of it at every strength that was tried"
            return f"{way}, {passed}; the policy stays as it is"
        found = f"{self.strength.value:.3g} ± {self.strength.se:.2g}"
        return f"{way}; from here on the policy is what was trained at strength {found}"


AS_IT_IS = Estimate(1.0, 0.0)
"""The strength of a policy as it was trained."""


def calibrate(
    subject: Subject,
    bank: SampleSet,
    trained: dict[str, Tensor],
    progress: StartProgress,
    *,
    up: bool = False,
) -> Calibration:
    """Find it, and leave the network with the policy at that strength.

    Args:
        bank: of the reference, on the same prompts.
        trained: the network's `trainable_state`, on whatever device.
        up: whether a policy that falls short is strengthened, too.
    """
    tilt = ImportanceWeights.of_rewards(bank.rewards, bank.prompt_index, subject.beta)
    start = reward_mean(bank.rewards, bank.prompt_index)
    goal = reward_mean(bank.rewards, bank.prompt_index, tilt.weights)
    if not tilt.trustworthy or part_of_way(start, goal, goal) is None:
        return Calibration(None, AS_IT_IS)

    def measured(strength: float) -> Try:
        mean = _mean_at(strength, subject, trained, progress)
        way = part_of_way(start, mean, goal)
        assert way is not None  # there is one
        return Try(strength, way)

    tries = _tries(measured, up=up)
    last = tries[-1]
    short = last.strength > 1.0 and last.way.value < 1.0 and not _tells(tries)
    found = at_tilt(tries) if len(tries) > 1 and not short else AS_IT_IS
    subject.model.adapter.settle(found.value)
    return Calibration(tries[0].way, found, short)


@dataclass(frozen=True)
class Try:
    """How much of the way a strength goes."""

    strength: float
    way: Estimate


def at_tilt(tries: Sequence[Try]) -> Estimate:
    """The least strength with the whole way, on a parabola through the last two and the reference.

    Its error is that of the way, over the parabola's slope.

    Args:
        tries: two or more, from strength 1 down, all but the last with the whole way or more; or
            from 1 up, all but the last with less.
    """
    before, last = tries[-2:]
    steep = last.way.value / last.strength
    b = (before.way.value / before.strength - steep) / (before.strength - last.strength)
    a = steep - b * last.strength
    # Of a s + b s^2 = 1, without a difference of what is nearly the same.
    root = math.sqrt(max(a * a + 4.0 * b, 0.0))
    strength = 2.0 / (a + root) if a + root > 0.0 else math.inf
    if last.strength < 1.0:
        strength = min(strength, 1.0)
    return Estimate(strength, last.way.se / root if root > 0.0 else math.inf)


def _tells(tries: Sequence[Try]) -> bool:
    """Whether the parabola has the tilt where it was measured, or not far beyond."""
    found, last = at_tilt(tries), tries[-1].strength
    if last < 1.0:
        return found.value >= last - _BEYOND
    return found.value <= last + _BEYOND and math.isfinite(found.se)


def _tries(measured: Callable[[float], Try], *, up: bool) -> list[Try]:
    """From strength 1 on, down or up, as far as is needed.

    One that chance may have put past the tilt, or short of it, is the only one.
    """
    tries = [measured(1.0)]
    way = tries[0].way
    past, short = way.value - 2.0 * way.se >= 1.0, 0.0 < way.value < 1.0 - 2.0 * way.se
    for quarter in _further(way.value) if past or (up and short) else ():
        tries.append(measured(quarter * _STEP))
        before, last = (found.way.value for found in tries[-2:])
        crossed, falls = (last < 1.0) == past, short and last < before
        if crossed or falls or _tells(tries):
            break
    return tries


def _further(way: float) -> range:
    """The quarters to look at, from beyond the tilt by a straight line to ``way`` at strength 1."""
    whole, most = round(1 / _STEP), round(_MOST / _STEP)
    if way > 1.0:
        return range(min(whole - 1, max(1, math.floor(whole / way))), 0, -1)
    first = math.ceil(whole / max(way, 1.0 / most))
    return range(max(whole + 1, min(first, most)), most + 1)


def _mean_at(
    strength: float, subject: Subject, trained: dict[str, Tensor], progress: StartProgress
) -> Estimate:
    """The policy's mean reward at a strength; the network has the policy again afterwards."""
    network, adapter = subject.model.network, subject.model.adapter
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
    load_trainable_state(network, trained)
    adapter.scale(1.0)
    return reward_mean(samples.rewards, samples.prompt_index)
