"""The guard against reward hacking: figures at intervals, their budgets, the best policy so far.

Always the same prompts and the same noise, so that two looks differ by the policy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nablaflow.config.settings import GuardSettings
from nablaflow.diffusion import sample_trajectories, trajectory_noise
from nablaflow.errors import UserError
from nablaflow.evaluation.bank import spread
from nablaflow.evaluation.measure import measure_states
from nablaflow.evaluation.path_kl import PathKL
from nablaflow.memory import in_parts
from nablaflow.metrics.diversity import diversity
from nablaflow.metrics.reward import reward_mean
from nablaflow.models.pipelines import PipelineModel
from nablaflow.rewards import NamedReward
from nablaflow.seeds import stream

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Look:
    """What the guard saw after ``update``.

    Attributes:
        kl: of the policy's paths from the reference's, nats.
        diversity: within prompts, as a share of the reference's own on the same noise.
        reward: mean of the reward that is trained.
        held_out: mean of the one that is not; None without one.
    """

    update: int
    kl: float
    diversity: float
    reward: float
    held_out: float | None


@dataclass(frozen=True)
class Trip:
    """A budget that was exceeded."""

    metric: str
    value: float
    limit: float
    update: int


@dataclass(frozen=True)
class _Measured:
    kl: float
    diversity: float
    reward: float
    held_out: float | None


class Guard:
    """Looks, decides, and remembers; all it remembers is in `state` and `restore`.

    Attributes:
        n: images of a look.
        every: updates between two looks.
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
    ) -> None:
        self.settings, self.prompts, self.model = settings, prompts, model
        self.reward, self.held_out, self._batch = reward, held_out, batch
        assert settings.n != "auto"
        assert settings.every != "auto"
        self.n, self.every = settings.n, settings.every
        self.reference: dict[str, Any] | None = None
        self.best: Look | None = None
        self.last: Look | None = None
        self.trip: Trip | None = None

    @property
    def ends_the_run(self) -> bool:
        """Whether a budget is exceeded by a guard that does more than to warn."""
        return self.trip is not None and self.settings.action != "warn"

    # --- looking ----------------------------------------------------------------------------------

    def begin(self, on_progress: Progress) -> None:
        """Measure the reference, which every later look is compared with.

        Raises:
            UserError: it exceeds a budget itself, or its images are all alike.
        """
        with self.model.reference():
            found = self._measure(self._sample_plain, on_progress)
        if found.diversity == 0.0 and self.settings.action != "warn":
            raise UserError(
                "guard.prompts: the reference's images of a prompt are all alike, so there is no "
                "diversity to keep; use other prompts, or guard=null"
            )
        self.reference = {key: value for key, value in asdict(found).items() if key != "kl"}
        self.best = self.last = Look(0, 0.0, 1.0, found.reward, found.held_out)
        trip = self._exceeded(self.best)
        if trip is not None:
            key = {"held_out": "held_out.min", "diversity": "min_diversity"}[trip.metric]
            raise UserError(
                f"guard.{key}: the reference itself has {trip.value:.4g}, less than "
                f"{trip.limit:g}; use a lower one"
            )

    def look(self, update: int, on_progress: Progress) -> Look:
        """Measure the policy.

        Raises:
            FloatingPointError: a state that it samples is not finite.
        """
        assert self.reference is not None
        found = self._measure(self._sample_with_kl, on_progress)
        own = self.reference["diversity"]
        share = found.diversity / own if own else 1.0  # nothing to lose
        return Look(update, found.kl, share, found.reward, found.held_out)

    def judge(self, look: Look) -> bool:
        """Take a look into account; whether it is the best so far."""
        self.last, self.trip = look, self._exceeded(look)
        better = self.best is None or look.reward > self.best.reward
        if self.trip is None and better:
            self.best = look
            return True
        return False

    def _exceeded(self, look: Look) -> Trip | None:
        for metric, limit in self.settings.budgets.items():
            value = getattr(look, metric)
            if limit is None:
                continue
            within = value <= limit if metric == "kl" else value >= limit
            if not within:  # so for NaN too
                return Trip(metric, value, limit, look.update)
        return None

    def _measure(
        self, sample: Callable[[list[str], list[int]], tuple[Tensor, Tensor]], on_progress: Progress
    ) -> _Measured:
        n, settings = self.n, self.settings
        index = spread(n, len(self.prompts))
        texts = [self.prompts[i] for i in index.tolist()]
        seeds = [stream(settings.seed, "guard", row) for row in range(n)]

        def work(rows: slice) -> tuple[Tensor, Tensor]:
            x0, kl = sample(texts[rows], seeds[rows])
            on_progress(len(x0))
            return x0.cpu(), kl.cpu()

        parts = in_parts(work, n, self._batch, "evaluation.batch")
        states, kl = (torch.cat(part) for part in zip(*parts, strict=True))
        if not states.isfinite().all():
            raise FloatingPointError("a state that the policy sampled for the guard")
        found = measure_states(
            self.model,
            self.reward,
            states,
            self.prompts,
            batch=self._batch,
            on_progress=lambda done: None,
            looks={} if self.held_out is None else {"held_out": self.held_out},
        )
        held_out = found.rows.get("held_out")
        return _Measured(
            reward_mean(kl, index).value,
            diversity(found.samples.features, index).value,
            reward_mean(found.samples.rewards, index).value,
            None if held_out is None else reward_mean(held_out, index).value,
        )

    def _sample_with_kl(self, texts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        model = self.model
        predict = PathKL(model, model.condition(texts), len(texts))
        noise = trajectory_noise(seeds)
        found = sample_trajectories(predict, model.process, model.state_shape, noise, model.device)
        return found.x0, predict.total

    def _sample_plain(self, texts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        model, condition, noise = self.model, self.model.condition(texts), trajectory_noise(seeds)
        found = sample_trajectories(
            lambda x, k: model.predict(x, k, condition),
            model.process,
            model.state_shape,
            noise,
            model.device,
        )
        return found.x0, torch.zeros(len(texts))

    # --- remembering ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        kept = {"best": self.best, "last": self.last, "trip": self.trip}
        plain = {name: None if part is None else asdict(part) for name, part in kept.items()}
        return {"reference": self.reference, **plain}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.reference = state["reference"]
        self.best = state["best"] and Look(**state["best"])
        self.last = state["last"] and Look(**state["last"])
        self.trip = state["trip"] and Trip(**state["trip"])

    def summary(self, best_checkpoint: str) -> dict[str, Any]:
        """What summary.json says: the figures at top level are those of the best checkpoint."""
        assert self.best is not None and self.last is not None
        best = asdict(self.best)
        return {
            "best_update": best.pop("update"),
            "best_checkpoint": best_checkpoint,
            **best,
            "last": asdict(self.last),
            "reference": self.reference,
            "budgets": self.settings.budgets,
            "action": self.settings.action,
            "tripped": None if self.trip is None else asdict(self.trip),
        }


def as_record(look: Look) -> dict[str, float]:
    """A look as figures of its update in metrics.jsonl."""
    figures = {"kl": look.kl, "diversity": look.diversity, "reward": look.reward}
    if look.held_out is not None:
        figures["held_out"] = look.held_out
    return {f"guard_{name}": value for name, value in figures.items()}
