"""Finds beta where the configuration gives a strength of the tilt in place of the number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nablaflow.evaluation.bank import sample_states, spread
from nablaflow.evaluation.measure import measure_states
from nablaflow.methods.tilt_rule import TiltRule
from nablaflow.metrics.strength import Strength
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import StartProgress
from nablaflow.rewards import NamedReward

SAMPLES = 64  # of the reference for each prompt
PROMPTS = 4  # at most, evenly from the run's
BATCH = 32
SEED = 3  # of their noise, apart from all other noise


@dataclass(frozen=True)
class ChosenBeta(Strength):
    """The tilt that was chosen; as text a line that says what it means."""

    def __str__(self) -> str:
        return (
            f"beta: {self.beta:g}, at which {self.effective_share:.0%} of {self.n} reference "
            f"samples count ({self.nats:.2f} nats); their mean reward is {self.reward_mean:.4g}, "
            f"the exact tilt's {self.tilted_reward_mean:.4g}"
        )


def find_beta(
    rule: TiltRule,
    model: PipelineModel,
    reward: NamedReward,
    prompts: Sequence[str],
    start: StartProgress,
    batch: int = BATCH,
) -> ChosenBeta:
    """The beta that a rule gives, from `SAMPLES` of the reference for up to `PROMPTS` prompts.

    Raises:
        UserError: the reward is constant, not finite, or has too few values.
    """
    texts = _some(list(dict.fromkeys(prompts)))
    n = SAMPLES * len(texts)
    with model.reference():
        states = sample_states(
            model,
            texts,
            n,
            seed=SEED,
            batch=batch,
            purpose="beta",
            on_progress=start("sample for beta", n),
        )
    told = start("score for beta", n)
    found = measure_states(model, reward, states, texts, batch=batch, on_progress=told)
    rewards, index = found.samples.rewards, spread(n, len(texts))
    return ChosenBeta(**vars(Strength.of_rewards(rewards, index, rule.find(rewards, index))))


def _some(texts: list[str]) -> list[str]:
    count = min(PROMPTS, len(texts))
    return [texts[place * len(texts) // count] for place in range(count)]
