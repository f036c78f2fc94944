"""Finds beta where the configuration gives a strength of the tilt in place of the number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow.devices import best_device
from nablaflow.errors import UserError
from nablaflow.evaluation.bank import sample_states, spread
from nablaflow.evaluation.measure import measure_states
from nablaflow.methods.tilt_rule import AUTO, TiltRule
from nablaflow.metrics.strength import Strength
from nablaflow.models import AdapterSettings, SamplerSettings, WithLora, load_model, load_pipeline
from nablaflow.models.fused import SETTING as FUSED
from nablaflow.models.lora_file import find_lora
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import StartProgress, unseen
from nablaflow.prompts.sets import Source, load_prompts, prompt_metadata
from nablaflow.rewards import NamedReward, load, tell_metadata
from nablaflow.surroundings import surrounded

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


@surrounded
def choose_beta(
    *,
    model: str = "nano",
    reward: str | dict[str, Any] | Callable[..., Any],
    prompts: Source,
    effective_share: float | None = None,
    nats: float | None = None,
    sampler: dict[str, Any] | None = None,
    model_lora: str | Path | None = None,
    model_lora_scale: float = 1.0,
) -> ChosenBeta:
    """A tilt strength for a reward whose unit nobody knows, from a small reference sample.

    Args:
        model: ``nano``, ``flow``, a diffusers folder, or a hub id.
        reward: as in `nablaflow.align`.
        prompts: as in `nablaflow.align`; up to four of them are used.
        effective_share: of reference samples that count under the tilt, (sum w)^2 / (n sum w^2)
            with w = exp(beta r), in the prompt where fewest do; a third without ``nats``.
        nats: or the tilt's divergence from the reference, in the prompt where it is largest.
        sampler: settings as in a recipe.
        model_lora: as in `nablaflow.align`: it belongs to the reference.
        model_lora_scale: strength of that.

    Returns:
        ``beta``, with what the tilt then is; ``print`` shows it.

    Raises:
        UserError: a mistake in any of these, or a reward that is constant or not finite.
    """
    from nablaflow.config.parse import parse_group
    from nablaflow.models import model_source

    if effective_share is not None and nats is not None:
        raise UserError("nats: effective_share is given as well; use one of the two")
    given = {"effective_share": effective_share, "nats": nats}
    rule = parse_group(TiltRule, given, "beta") if any(given.values()) else AUTO
    texts, found = load_prompts(prompts, Path()), load(reward)
    tell_metadata(found, lambda: prompt_metadata(prompts, seed=0))
    settings = parse_group(SamplerSettings, sampler or {}, "sampler")
    source: Any = model_source(model)
    if model_lora is not None:
        source = WithLora(source, find_lora(str(model_lora), FUSED), model_lora_scale)
    loaded = load_model(load_pipeline(source), settings, AdapterSettings(), best_device())
    return find_beta(rule, loaded, found, texts, unseen)
