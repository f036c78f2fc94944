"""What all methods are measured by: one reference bank, its tilts, and a reward held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nablaflow.addresses import masked
from nablaflow.config.recipe import Config
from nablaflow.config.settings import EvaluationSettings
from nablaflow.evaluation.bank import sample_states, spread
from nablaflow.evaluation.bank_size import BankSize
from nablaflow.evaluation.measure import SECOND, measure_bank, measure_states
from nablaflow.evaluation.plan import EvaluationPlan
from nablaflow.evaluation.sampled import ImageLook, Sampled
from nablaflow.methods.tilt_rule import AUTO
from nablaflow.metrics import Estimate, ImportanceWeights, SampleSet, Yardstick, reward_mean
from nablaflow.metrics.summary import Column, add_figures
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import StartProgress
from nablaflow.rewards import NamedReward
from nablaflow.rewards.references import references
from nablaflow.runs.own_code import marks
from nablaflow.storage.cached import read_cached, write_cached
from nablaflow.typing import Batch, Latents

CURVE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Multiples of beta at which the exact tilt is drawn, as far as the bank carries."""


@dataclass(frozen=True)
class ScoredSamples:
    """Images as the figures see them, with a second reward beside the first.

    Attributes:
        held_out: (n,) scores of the reward that nothing was trained on; None without one.
    """

    samples: SampleSet
    held_out: Batch | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All but the prompts, which are in turns."""
        tensors = {"features": self.samples.features, "rewards": self.samples.rewards}
        return tensors if self.held_out is None else {**tensors, "held_out": self.held_out}


@dataclass(frozen=True)
class Gauge:
    """A model, prompts and a reward, ready to measure policies.

    Attributes:
        yardstick: at ``beta``.
        bank: the reference's own images.
        plan: further metrics; None: there are none.
        second: the reference's by other noise, which those measure distances from.
    """

    reward: NamedReward
    held_out: NamedReward | None
    beta: float
    prompts: list[str]
    bank: ScoredSamples
    yardstick: Yardstick
    plan: EvaluationPlan | None = None
    second: Sampled | None = None

    @staticmethod
    def of(
        reward: NamedReward,
        held_out: NamedReward | None,
        beta: float | None,
        prompts: list[str],
        bank: ScoredSamples,
    ) -> Gauge:
        """With the beta that ``auto`` gives where there is none."""
        beta = _beta(bank.samples, beta)
        yardstick = Yardstick.of(bank.samples, beta)
        return Gauge(reward, held_out, beta, prompts, bank, yardstick)

    def with_metrics(self, model: PipelineModel, settings: EvaluationSettings) -> Gauge:
        """With those of ``evaluation.metrics`` besides.

        Raises:
            UserError: one that is none, or too few images for it.
        """
        plan = EvaluationPlan.of_summary(settings, len(self.prompts), model.device)
        if not plan.metrics:
            return self
        with model.reference():
            states = self._states(model, settings, SECOND, lambda done: None)
            second = measure_states(
                model,
                None,  # no metric wants the rewards of these
                states,
                self.prompts,
                batch=settings.batch,
                on_progress=lambda done: None,
                looks=plan.looks(),
            )
        return replace(self, plan=plan, second=second)

    def measure(
        self, model: PipelineModel, states: Latents, batch: int, on_progress: Callable[[int], None]
    ) -> Column:
        """The figures of states, prompts in turns."""
        looks: dict[str, ImageLook] = {} if self.plan is None else dict(self.plan.looks())
        if self.held_out is not None:
            looks["held_out"] = self.held_out
        found = measure_states(
            model,
            self.reward,
            states,
            self.prompts,
            batch=batch,
            on_progress=on_progress,
            looks=looks,
        )
        column = self.column(ScoredSamples(found.samples, found.rows.get("held_out")))
        if self.plan is None or self.second is None:
            return column
        return add_figures(column, self.plan.measure(found, self.second, 0, lambda done: None))

    def _states(
        self,
        model: PipelineModel,
        settings: EvaluationSettings,
        purpose: str,
        on_progress: Callable[[int], None],
    ) -> Latents:
        return sample_states(
            model,
            self.prompts,
            settings.n,
            seed=settings.seed,
            batch=settings.batch,
            purpose=purpose,
            on_progress=on_progress,
        )

    def measure_policy(
        self, model: PipelineModel, config: Config, on_progress: Callable[[int], None]
    ) -> Column:
        """The figures of whichever network is active, on the evaluation's prompts and noise."""
        settings = config.evaluation
        states = self._states(model, settings, "evaluation", on_progress)
        return self.measure(model, states, settings.batch, lambda done: None)

    def column(self, scored: ScoredSamples) -> Column:
        column = self.yardstick.column(scored.samples)
        return column | self._held_out(scored.held_out, scored.samples.prompt_index, None)

    def reference(self) -> Column:
        """The bank itself, which is at no distance from itself; for one too small for a curve."""
        none = ("distance_to_reference", "distance_to_tilt")
        nothing = {name + end: None for name in none for end in ("", "_se")}
        return self.column(self.bank) | nothing

    def tilt_curve(self, on_progress: Callable[[int], None]) -> list[Column]:
        """The exact tilt at multiples of ``beta``, from the reference on, as far as it carries."""
        columns = []
        for multiple in CURVE:
            columns.append(self._tilt(multiple * self.beta))
            on_progress(1)
        return [column for column in columns if column is not None]

    def _tilt(self, beta: float) -> Column | None:
        bank = self.bank.samples
        column = Yardstick.of(bank, beta).exact_tilt()
        if column is None:
            return None
        weights = ImportanceWeights.of_rewards(bank.rewards, bank.prompt_index, beta).weights
        held_out = self._held_out(self.bank.held_out, bank.prompt_index, weights)
        return column | held_out | {"beta": beta}

    def _held_out(self, scores: Batch | None, index: Tensor, weights: Batch | None) -> Column:
        if scores is None:
            return {"held_out": None, "held_out_se": None}
        found: Estimate = reward_mean(scores, index, weights)
        return {"held_out": found.value, "held_out_se": found.se}


def scored_bank(
    model: PipelineModel,
    rewards: tuple[NamedReward, NamedReward | None],
    config: Config,
    prompts: list[str],
    fingerprint: str,
    folder: Path,
    progress: StartProgress,
    *,
    size: BankSize,
    beta: float | None,
    specs: Sequence[Any],
) -> ScoredSamples:
    """The reference bank with its scores, from the folder if it is there.

    Args:
        fingerprint: of the pretrained weights.
        size: how much of it is looked at; the bank itself is the configuration's.
        beta: of the tilt that has to be known; None: the one that ``auto`` gives.
        specs: of the rewards, whose names tell neither their settings nor what is in their files.
    """
    reward, held_out = rewards
    names = [reward and reward.name for reward in rewards]
    own = [] if size.first == size.whole else [size.first, beta]
    told = json.dumps([fingerprint, prompts, config.sampler.model_dump(), size.whole, *own])
    about = [masked(list(specs)), marks(references(list(specs)))]
    key = hashlib.sha256((told + json.dumps([names, about])).encode()).hexdigest()[:24]
    path = folder / "bank.safetensors"
    found = read_cached(path, key) if path.is_file() else None
    if found is not None:
        index = spread(len(found["rewards"]), len(prompts))
        return ScoredSamples(
            SampleSet(found["features"], found["rewards"], index), found.get("held_out")
        )
    looks = {} if held_out is None else {"held_out": held_out}
    seen = measure_bank(
        model,
        reward,
        prompts,
        config,
        fingerprint,
        size,
        progress,
        find_beta=lambda samples: _beta(samples, beta),
        looks=looks,
    )
    scored = ScoredSamples(seen.samples, seen.rows.get("held_out"))
    _save(path, scored, key)
    return scored


def _beta(samples: SampleSet, beta: float | None) -> float:
    """``beta``, or what ``auto`` gives where there is none."""
    return AUTO.find(samples.rewards, samples.prompt_index) if beta is None else beta


def _save(path: Path, scored: ScoredSamples, key: str) -> None:
    write_cached(path, scored.tensors, key)
