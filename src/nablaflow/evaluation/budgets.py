"""What the guard sees at one time, and whether it is within the budgets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from nablaflow.metrics.catalog import METRICS


@dataclass(frozen=True)
class Look:
    """What the guard saw after ``update``.

    Attributes:
        kl: of the policy's paths from the reference's, nats; None where they have no noise.
        diversity: within prompts, as a share of the reference's own on the same noise.
        reward: mean of the reward that is trained.
        held_out: mean of the one that is not; None without one.
        metrics: those that have a budget, by name.
    """

    update: int
    kl: float | None
    diversity: float
    reward: float
    held_out: float | None
    metrics: dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, float | None]:
        """The guard's own and the metrics, by name."""
        own = asdict(self)
        del own["update"]
        return {**own.pop("metrics"), **own}


@dataclass(frozen=True)
class Trip:
    """A budget that was exceeded."""

    metric: str
    value: float
    limit: float
    update: int

    def __str__(self) -> str:
        side = "above" if is_ceiling(self.metric) else "below"
        name = self.metric.replace("_", "-")
        return f"{name} {self.value:.3g} is {side} its budget of {self.limit:g}"


def is_ceiling(metric: str) -> bool:
    """Whether a budget of this figure is the most allowed, and not the least."""
    return metric == "kl" or (metric in METRICS and METRICS[metric].distance)


def exceeds(metric: str, value: float, limit: float) -> bool:
    """Whether a figure is beyond its budget; NaN is."""
    return not (value <= limit if is_ceiling(metric) else value >= limit)
