"""How much of a reference bank is looked at: all of it, or what a smaller measurement needs.

The error of a distance to the exact tilt has a part from the images that are measured and one from
the bank's. A recipe's ``evaluation.n`` and ``evaluation.bank`` are in some proportion; fewer images
keep it, but for the tilt itself, which is known from enough of the bank or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.evaluation.sampled import Sampled
from nablaflow.metrics.summary import SampleSet
from nablaflow.metrics.tilt import MIN_EFFECTIVE_SAMPLE_SIZE, ImportanceWeights
from nablaflow.typing import Latents

_AIM = 1.25 * MIN_EFFECTIVE_SAMPLE_SIZE
"""What a larger part is chosen for: the effective size of a small one is known to some percent."""


def bank_for_tilt(rewards: Tensor, prompt_index: Tensor, beta: float) -> int:
    """How large a bank is enough for the exact tilt, by what some images of the reference say.

    Few images say little of it, and then it may come to more; see `BankSize.after`.
    """
    tilt = ImportanceWeights.of_rewards(rewards, prompt_index, beta)
    prompts = len(tilt.effective_sample_sizes)
    each = math.ceil(len(rewards) * _AIM / tilt.effective_sample_size / prompts)
    return each * prompts


@dataclass(frozen=True)
class BankSize:
    """How many of a bank's images are looked at; they are its first ones.

    Attributes:
        whole: images that the bank has.
        first: looked at before it is known how many of them count.
    """

    whole: int
    first: int

    @classmethod
    def all_of(cls, whole: int) -> BankSize:
        return cls(whole, whole)

    @classmethod
    def for_images(cls, whole: int, own: int, n: int) -> BankSize:
        """For ``n`` measured images, of a bank that was chosen for ``own`` of them."""
        return cls(whole, min(whole, -(-whole * n // own)))

    def after(self, seen: int, effective: float) -> int:
        """How many are needed once ``seen`` are known; ``seen`` where they are enough.

        Args:
            effective: how many of them count under the tilt, in the prompt of fewest.
        """
        if seen >= self.whole or effective >= MIN_EFFECTIVE_SAMPLE_SIZE:
            return seen
        # Few images say little of how many count: no more than twice as many at once.
        ask = min(2 * seen, round(seen * _AIM / effective))
        return min(self.whole, max(seen + 1, ask))

    def note(self, seen: int, remedy: str) -> list[str]:
        """A line for the user where not all were looked at."""
        if seen >= self.whole:
            return []
        return [
            f"reference bank: {seen:,} of its {self.whole:,} images are looked at, as many as --n "
            f"and the exact tilt need; {remedy}"
        ]


def look_at_bank(
    sample: Callable[[int, Tensor | None], Latents],
    score: Callable[[Latents], Sampled],
    size: BankSize,
    prompts: int,
    find_beta: Callable[[SampleSet], float],
) -> Sampled:
    """Look at a bank's first images until they are enough.

    Args:
        sample: ``(n, known)`` gives its first ``n`` states; ``known`` are the first of them.
        score: looks at states, of which the first is of the first prompt.
        prompts: how many they are of, in turns.
        find_beta: the tilt's strength.
    """
    states: Tensor | None = None
    parts: list[Sampled] = []
    ask = max(size.first, 2 * prompts)
    while True:
        seen = 0 if states is None else len(states)
        # Whole rounds of the prompts, so that each part begins with the first.
        states = sample(min(size.whole, -(-ask // prompts) * prompts), states)
        parts.append(score(states[seen:]))
        found = _joined(parts)
        own = found.samples
        tilt = ImportanceWeights.of_rewards(own.rewards, own.prompt_index, find_beta(own))
        ask = size.after(len(own), tilt.effective_sample_size)
        if ask == len(own):
            return found


def _joined(parts: Sequence[Sampled]) -> Sampled:
    """Parts of one set, in order."""
    sets = [part.samples for part in parts]
    samples = SampleSet(
        torch.cat([part.features for part in sets]),
        torch.cat([part.rewards for part in sets]),
        torch.cat([part.prompt_index for part in sets]),
    )
    rows = {name: torch.cat([part.rows[name] for part in parts]) for name in parts[0].rows}
    return Sampled(samples, parts[0].images, parts[0].prompts, rows)
