"""What some figures mean, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nablaflow.evaluation.budgets import exceeds, is_ceiling
from nablaflow.metrics.catalog import METRICS

COLLAPSED = 0.5
"""Share of the reference's diversity below which a run is called collapsed."""

PAST = 1.2
"""Of the way to the exact tilt, beyond which a share of the way is no longer what counts."""


GUARDED = {
    "kl": ("divergence of the paths from the reference's", "nats"),
    "diversity": ("diversity within prompts", "share of the reference's"),
    "held_out": ("held-out reward, which is not trained", "held-out reward"),
    "reward": ("trained reward", "reward"),
}
"""The guard's figures: what is shown, and the unit of its axis."""

_LOSSES = {
    "loss": "sum of all terms",
    "loss_balance": "detailed balance residual",
    "loss_consistency": "value gradient along a step",
    "loss_flow": "fit of the flow score",
    "loss_forward": "forward residual",
    "loss_kl": "KL to the reference",
    "loss_matching": "velocity to its target",
    "loss_output_regularization": "change since the rollout",
    "loss_policy": "policy gradient",
    "loss_pretraining": "distance to the reference",
    "loss_regression": "weighted regression",
    "loss_reverse": "reverse residual",
    "loss_reward": "reward, negative",
    "loss_terminal": "terminal condition",
}


def loss_name(key: str) -> str:
    """What a term of the loss is called, by its key in ``metrics.jsonl``."""
    return _LOSSES.get(key) or key.removeprefix("loss_").replace("_", " ")


SAME_REWARD = (
    "the reward is the same for all images of a prompt: it tells none from another, and the policy "
    "learns nothing by it; use another reward"
)


def warnings(look: Mapping[str, Any], budgets: Mapping[str, float | None]) -> dict[str, str]:
    """A line for each budget of the guard that a look exceeds, by its metric."""
    found = {}
    for metric in dict.fromkeys([*_SAID, *budgets]):
        value, limit = look.get(metric), budgets.get(metric)
        if value is not None and limit is not None and exceeds(metric, value, limit):
            say = _SAID.get(metric)
            found[metric] = say(value, limit) if say else _of_metric(metric, value, limit)
    return found


def _of_metric(metric: str, value: float, limit: float) -> str:
    side = "above" if is_ceiling(metric) else "below"
    return f"{METRICS[metric].label} is {value:.3g}, {side} its budget of {limit:g}"


def _divergence(value: float, limit: float) -> str:
    return (
        f"divergence: the paths are {value:.3g} nats from the reference's, more than {limit:g}: "
        "this run is leaving its prior"
    )


def _diversity(value: float, limit: float) -> str:
    state = "this run has collapsed" if value < COLLAPSED else "this run is narrowing"
    return f"diversity fell to {100 * value:.0f} % of the reference's: {state}"


def _held_out(value: float, limit: float) -> str:
    return (
        f"the held-out reward drifted to {value:.3g}, below {limit:g}: the gain of the trained "
        "reward is not one of the images"
    )


_SAID: dict[str, Callable[[float, float], str]] = {
    "kl": _divergence,
    "diversity": _diversity,
    "held_out": _held_out,
}


def has_passed(closing: float, error: float) -> bool:
    """Whether a share of the way is far past the tilt, and by more than chance: by two errors."""
    return closing > PAST and closing - 2 * error > 1


_LEADS_BACK = (
    "use it at a strength below 1 (nablaflow eval RUN --strength 0.8, again for more, says which)"
)


def the_way(closing: float, error: float) -> str:
    """How far the policy's mean reward is on the way from the reference's to the exact tilt's."""
    if has_passed(closing, error):
        return (
            f"The aligned model has passed the exact tilt: its mean reward is {closing:.0%} of the "
            f"way from the reference's to the tilt's (± {error:.0%}). It has more reward than beta "
            f"asks for, at the cost of diversity and prior: {_LEADS_BACK}, train for fewer updates "
            "or with a lower learning rate, or raise beta if so much reward is wanted."
        )
    past = f", past it: more reward than beta asks for; {_LEADS_BACK}"
    past = past if closing - 2 * error > 1 else ""
    return (
        f"The aligned model closes {closing:.0%} of the way from the reference's mean reward "
        f"to the exact tilt's (± {error:.0%}){past}."
    )
