"""Methods as they compete on the embedded model: each with the settings that it was tuned to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nablaflow.errors import UserError, nearest
from nablaflow.methods import BestOfN, Method, Untrained
from nablaflow.methods.own import load_method
from nablaflow.methods.variants import UNTRAINED_VARIANTS, VARIANTS, without_variant
from nablaflow.rewards.custom import is_custom

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Entrant:
    """How a method of `nablaflow.methods.variants` is trained here.

    Attributes:
        variant: its name there.
        learning_rate: of the policy; docs/comparison.md has the grid that it was chosen from.
        training: laid over `TRAINING`.
        flow: settings of the flow network; None: there is none.
        sampler: laid over `SAMPLER`, for methods of another noise.
    """

    variant: str
    learning_rate: float
    training: Changes = field(default_factory=dict)
    flow: Changes | None = None
    sampler: Changes = field(default_factory=dict)

    def method(self, beta: float) -> Method:
        return VARIANTS[self.variant](beta)


TRAINING: Changes = {
    "prompts_per_update": 4,
    "images_per_prompt": 8,
    "transition_fraction": 0.2,
}
"""The demo's."""

SAMPLER: Changes = {"name": "ddim", "steps": 10}
"""The demo's, whose images everything is measured against."""

FLOW: Changes = {"channels": [64, 128], "ema_decay": 0.9}
GROUPS: Changes = {"images_per_prompt": 16}
ALL_STEPS: Changes = {"transition_fraction": 0.5, "steps_per_rollout": 2}
WHOLE: Changes = {"transition_fraction": 0.1}  # of no effect: the method draws its steps itself

ENTRANTS: dict[str, Entrant] = {
    entrant.variant: entrant
    for entrant in (
        Entrant("residual-nabla-db", 3e-3),
        Entrant("residual-nabla-db-contrastive", 3e-3),
        Entrant("residual-nabla-db-published", 3e-3, flow=FLOW),
        Entrant("nabla-db", 1e-3, flow=FLOW),
        Entrant("nabla-td", 1e-2, flow=FLOW),
        Entrant("adjoint-matching", 1e-3),
        Entrant("terminal", 3e-3),
        Entrant("path-weighted-matching-adjoint", 3e-3, ALL_STEPS),
        Entrant("ddpo", 1e-2, ALL_STEPS),
        Entrant("ddpo-published", 3e-3, ALL_STEPS),
        Entrant("dag-db", 1e-2, flow=FLOW),
        Entrant("dag-kl", 1e-2, flow=FLOW),
        Entrant("refl", 3e-4, WHOLE),
        Entrant("refl-all-steps", 3e-4, WHOLE),
        Entrant("draft-1", 1e-3, WHOLE),
        Entrant("draft-lv", 1e-3, WHOLE),
        Entrant("draft", 3e-4, WHOLE),
        Entrant("draft-tilted", 3e-3, WHOLE),
        Entrant("alignprop", 3e-4, WHOLE),
        Entrant("reward-weighted-regression", 1e-3, GROUPS),
        Entrant("flow-grpo", 3e-3, ALL_STEPS),
        Entrant("diffusion-nft", 3e-4, ALL_STEPS),
        Entrant("vgg-flow", 1e-3, flow=FLOW, sampler={"name": "euler"}),
    )
}
"""By name; adding an entrant is one line here."""

OWN = Entrant("", 3e-3)
"""How a method of the user's own is trained, or one of the list that has no line above yet."""

SHARES = (0.25, 0.5, 1.0, 2.0)

BYSTANDERS: dict[str, Callable[[float], list[Untrained]]] = {
    "best-of-n": lambda beta: [BestOfN(n=n) for n in (2, 4, 8, 16)],
    "guided-sampling": lambda beta: _guided("guided-sampling", beta),
    "guided-sampling-exact": lambda beta: _guided("guided-sampling-exact", beta),
}
"""References that train nothing: each a row of settings, from less reward to more."""


def _guided(name: str, beta: float) -> list[Untrained]:
    return [UNTRAINED_VARIANTS[name](share * beta) for share in SHARES]


DEFAULT = ("residual-nabla-db", "adjoint-matching", "ddpo", "draft", "best-of-n")


def check_entrant(name: str) -> None:
    """Raise `UserError` where there is none of the name, and the user's own class is not whole."""
    known = [*ENTRANTS, *BYSTANDERS]
    if _own(name) is None and name not in known:
        raise UserError(f"--method: no method {name!r} here; {nearest(name, known)}")


def entrant_method(name: str) -> Method:
    """A trained entrant's method at beta 1, or the user's own."""
    own = _own(name)
    return ENTRANTS[name].method(1.0) if own is None else own(beta=1.0)


def _own(name: str) -> type[Method] | None:
    """The class of a method that is trained as `OWN` is; None for those of the lists above."""
    return load_method(name) if is_custom(name) else without_variant(name)


def entrant_settings(name: str, beta: float, learning_rate: float | None) -> dict[str, Any]:
    """A trained entrant's part of a configuration.

    Args:
        learning_rate: in place of the entrant's own.
    """
    entrant = ENTRANTS[name] if _own(name) is None else OWN
    own = {"name": name, "beta": beta}
    rate = entrant.learning_rate if learning_rate is None else learning_rate
    return {
        "method": own if entrant is OWN else entrant.method(beta).model_dump_named(),
        "flow": None if entrant.flow is None else dict(entrant.flow),
        "optimizer": {
            "learning_rate": rate,
            "flow_learning_rate": 3e-3,
            "schedule": "cosine",
            "warmup": 5,
        },
        "sampler": {**SAMPLER, **entrant.sampler},
        "training": {**TRAINING, **entrant.training},
    }
