"""The guard against reward hacking: figures at intervals, their budgets, the best policy so far.

Always the same prompts and the same noise, so that two looks differ by the policy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nablaflow.config.settings import GuardSettings
from nablaflow.diffusion import adds_noise, trajectory_noise
from nablaflow.errors import UserError
from nablaflow.evaluation.bank import spread
from nablaflow.evaluation.budgets import Look, Trip, exceeds, is_ceiling
from nablaflow.evaluation.measure import SECOND, measure_states
from nablaflow.evaluation.path_kl import PathKL
from nablaflow.evaluation.plan import PIXELS, EvaluationPlan
from nablaflow.evaluation.reference_states import ReferenceStates
from nablaflow.evaluation.sampled import ImageLook, Sampled
from nablaflow.evaluation.shares import in_shares
from nablaflow.metrics.diversity import diversity
from nablaflow.metrics.reward import reward_mean
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import Done
from nablaflow.rewards import NamedReward
from nablaflow.seeds import stream
from nablaflow.typing import Latents


@dataclass(frozen=True)
class _Measured:
    diversity: float
    reward: float
    held_out: float | None
    metrics: dict[str, float]


class Guard:
    """Looks, decides, and remembers; all it remembers is in `state` and `restore`.

    A look is shared by the processes of a run, so every one of them must begin it.

    Attributes:
        n: images of a look.
        every: updates between two looks.
        looks: in all, evenly over a run's updates or its time, whichever is further; None:
            ``every`` says when.
        looked: seconds of training before the latest one.
        reference: the reference's own figures, diversity not as a share; None before `begin`.
        best: of the looks within all budgets the one of most reward, the reference's included.
        last: the latest one.
        trip: the first budget that was exceeded, if any was.
    """

    def __init__(
        self,
        settings: GuardSettings,
        prompts: list[str],
        model: PipelineModel,
        reward: NamedReward,
        held_out: NamedReward | None,
        batch: int,
        reference_states: ReferenceStates,
        looks: int | None = None,
    ) -> None:
        self.settings, self.prompts, self.model = settings, prompts, model
        self.reward, self.held_out, self._batch = reward, held_out, batch
        self._reference_states = reference_states
        assert settings.n != "auto"
        assert settings.every != "auto"
        self.n, self.every = settings.n, settings.every
        self.looks, self.looked = looks, 0.0
        self.plan = EvaluationPlan.of(
            list(settings.budgets),
            PIXELS,
            self.n,
            len(prompts),
            model.device,
            setting="guard.budgets",
            number="guard.n=",
        )
        self._second: Sampled | None = None
        self.reference: dict[str, Any] | None = None
        self.best: Look | None = None
        self.last: Look | None = None
        self.trip: Trip | None = None

    @property
    def ends_the_run(self) -> bool:
        """Whether a budget is exceeded by a guard that does more than to warn."""
        return self.trip is not None and self.settings.action != "warn"

    @property
    def _noisy(self) -> bool:
        """Without noise paths are of different measures, and no divergence is finite."""
        return adds_noise(self.model.process)

    # --- looking ----------------------------------------------------------------------------------

    def begin(self, on_progress: Done) -> None:
        """Measure the reference, which every later look is compared with.

        Raises:
            UserError: it exceeds a budget itself, or its images are all alike.
        """
        found = self._measure(self._of_reference("guard", on_progress))
        if found.diversity == 0.0 and self.settings.action != "warn":
            raise UserError(
                "guard.prompts: the reference's images of a prompt are all alike, so there is no "
                "diversity to keep; use other prompts, or guard=null"
            )
        kl = 0.0 if self._noisy else None
        self.best = self.last = Look(0, kl, 1.0, found.reward, found.held_out, found.metrics)
        self.reference = {**self.best.figures(), "diversity": found.diversity}
        del self.reference["kl"]
        trip = self.exceeded(self.best)
        if trip is not None:
            own = {"held_out": "held_out.min", "diversity": "min_diversity"}
            key = own.get(trip.metric, f"budgets.{trip.metric}")
            beyond, other = ("more", "higher") if is_ceiling(trip.metric) else ("less", "lower")
            raise UserError(
                f"guard.{key}: the reference itself has {trip.value:.4g}, {beyond} than "
                f"{trip.limit:g}; use a {other} one"
            )

    def look(self, update: int, on_progress: Done) -> Look:
        """Measure the policy.

        Raises:
            FloatingPointError: a state that it samples is not finite.
        """
        assert self.reference is not None
        states, paths = self._of_policy(on_progress)
        found = self._measure(states)
        own = self.reference["diversity"]
        share = found.diversity / own if own else 1.0  # nothing to lose
        kl = reward_mean(paths, self._index).value if self._noisy else None
        return Look(update, kl, share, found.reward, found.held_out, found.metrics)

    def owes(self, update: int) -> bool:
        """Whether the latest look is older than ``update``."""
        return self.last is not None and self.last.update < update

    def judge(self, look: Look) -> bool:
        """Take a look into account; whether it is the best so far."""
        self.last, self.trip = look, self.exceeded(look)
        better = self.best is None or look.reward > self.best.reward
        if self.trip is None and better:
            self.best = look
            return True
        return False

    def exceeded(self, look: Look) -> Trip | None:
        """The first budget that a look exceeds, if there is one; nothing is remembered."""
        figures = look.figures()
        for metric, limit in self.settings.limits.items():
            value = figures[metric]
            if limit is None or value is None:
                continue
            if exceeds(metric, value, limit):
                return Trip(metric, value, limit, look.update)
        return None

    @property
    def _index(self) -> Int[Tensor, "sample"]:
        """The prompt of each image of a look."""
        return spread(self.n, len(self.prompts))

    def _measure(self, states: Latents) -> _Measured:
        index = self._index
        looks: dict[str, ImageLook] = dict(self.plan.looks())
        if self.held_out is not None:
            looks["held_out"] = self.held_out
        found = self._scored(states, looks)
        held_out = found.rows.get("held_out")
        return _Measured(
            diversity(found.samples.features, index).value,
            reward_mean(found.samples.rewards, index).value,
            None if held_out is None else reward_mean(held_out, index).value,
            self._metrics(found),
        )

    def _metrics(self, found: Sampled) -> dict[str, float]:
        """Those with a budget; distances are from the reference's images by other noise."""
        if not self.plan.metrics:
            return {}
        if self._second is None:
            states = self._of_reference(SECOND, lambda done: None)
            self._second = self._scored(states, self.plan.looks())
        seed = self.settings.seed
        figures = self.plan.measure(found, self._second, seed, lambda done: None)
        return {name: figure.value for name, figure in figures.items()}

    def _of_reference(self, purpose: str, on_progress: Done) -> Latents:
        """Clean states of the reference, prompts in turns."""
        return self._reference_states.sample(
            self.prompts,
            self.n,
            seed=self.settings.seed,
            purpose=purpose,
            batch=self._batch,
            on_progress=on_progress,
        )

    def _of_policy(self, on_progress: Done) -> tuple[Latents, Tensor]:
        """Its clean states from the same noise, and the divergence of each one's path."""
        texts = [self.prompts[i] for i in self._index.tolist()]
        seeds = [stream(self.settings.seed, "guard", row) for row in range(self.n)]
        sample = self._sample_with_kl if self._noisy else self._sample_plain

        def work(rows: slice) -> tuple[Tensor, Tensor]:
            x0, kl = sample(texts[rows], seeds[rows])
            return x0.cpu(), kl.cpu()

        parts = in_shares(work, self.n, self._batch, "evaluation.batch", on_progress)
        states, kl = (torch.cat(part) for part in zip(*parts, strict=True))
        if not states.isfinite().all():
            raise FloatingPointError("a state that the policy sampled for the guard")
        return states, kl

    def _scored(self, states: Latents, looks: Mapping[str, ImageLook]) -> Sampled:
        return measure_states(
            self.model,
            self.reward,
            states,
            self.prompts,
            batch=self._batch,
            on_progress=lambda done: None,
            looks=looks,
        )

    def _sample_with_kl(self, texts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        model = self.model
        predict = PathKL(model, model.condition(texts), len(texts))
        found = model.sample(texts, trajectory_noise(seeds), predict=predict)
        return found.x0, predict.total

    def _sample_plain(self, texts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        return self.model.sample(texts, trajectory_noise(seeds)).x0, torch.zeros(len(texts))

    # --- remembering ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        kept = {"best": self.best, "last": self.last, "trip": self.trip}
        plain = {name: None if part is None else asdict(part) for name, part in kept.items()}
        return {"reference": self.reference, "looked": self.looked, **plain}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.reference = state["reference"]
        self.looked = state.get("looked", 0.0)  # which an earlier version did not keep
        self.best = state["best"] and Look(**state["best"])
        self.last = state["last"] and Look(**state["last"])
        self.trip = state["trip"] and Trip(**state["trip"])

    def summary(self, best_checkpoint: str) -> dict[str, Any]:
        """What summary.json says: the figures at top level are those of the best checkpoint."""
        assert self.best is not None and self.last is not None
        return {
            "best_update": self.best.update,
            "best_checkpoint": best_checkpoint,
            **self.best.figures(),
            "last": {"update": self.last.update, **self.last.figures()},
            "reference": self.reference,
            "budgets": self.settings.limits,
            "action": self.settings.action,
            "tripped": None if self.trip is None else asdict(self.trip),
        }


def as_record(look: Look) -> dict[str, float]:
    """A look as figures of its update in metrics.jsonl."""
    return {f"guard_{name}": value for name, value in look.figures().items() if value is not None}
