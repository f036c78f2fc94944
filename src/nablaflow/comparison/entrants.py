"""Methods as they compete on the embedded model: each with the settings that it was tuned to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nablaflow.errors import UserError, nearest
from nablaflow.methods import (
    DDPO,
    AdjointMatching,
    AlignProp,
    BestOfN,
    DagDB,
    DagKL,
    Draft,
    GuidedSampling,
    Method,
    NablaDB,
    NablaTD,
    PathWeightedMatching,
    ReFL,
    ResidualNablaDB,
    RewardWeightedRegression,
    TerminalMatching,
    Untrained,
)

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Entrant:
    """A method for any tilt, and how it is trained.

    Attributes:
        method: from beta.
        learning_rate: of the policy; docs/comparison.md has the grid that it was chosen from.
        training: laid over `TRAINING`.
        flow: settings of the flow network; None: there is none.
    """

    method: Callable[[float], Method]
    learning_rate: float
    training: Changes = field(default_factory=dict)
    flow: Changes | None = None


TRAINING: Changes = {
    "prompts_per_update": 4,
    "images_per_prompt": 8,
    "transition_fraction": 0.2,
}
"""The demo's."""

FLOW: Changes = {"channels": [64, 128], "ema_decay": 0.9}
GROUPS: Changes = {"images_per_prompt": 16}
ALL_STEPS: Changes = {"transition_fraction": 0.5, "steps_per_rollout": 2}
CLIP = 1e-2  # per value of 256; the published 1e-4 is for 16,384
WHOLE: Changes = {"transition_fraction": 0.1}  # of no effect: the method draws its steps itself

ENTRANTS: dict[str, Entrant] = {
    "residual-nabla-db": Entrant(lambda beta: ResidualNablaDB(beta=beta), 3e-3),
    "residual-nabla-db-published": Entrant(
        lambda beta: ResidualNablaDB.published(beta, 0.0), 3e-3, flow=FLOW
    ),
    "nabla-db": Entrant(lambda beta: NablaDB(beta=beta), 1e-3, flow=FLOW),
    "nabla-td": Entrant(lambda beta: NablaTD(beta=beta, td_lambda=0.5), 1e-2, flow=FLOW),
    "adjoint-matching": Entrant(lambda beta: AdjointMatching(beta=beta), 1e-2),
    "terminal": Entrant(lambda beta: TerminalMatching(beta=beta), 3e-3),
    "path-weighted-matching": Entrant(
        lambda beta: PathWeightedMatching(beta=beta, adjoint_above=0.0), 3e-3, ALL_STEPS
    ),
    "ddpo": Entrant(lambda beta: DDPO.tilted(beta, CLIP), 1e-2, ALL_STEPS),
    "ddpo-published": Entrant(lambda beta: DDPO(beta=beta, clip_range=CLIP), 1e-2, ALL_STEPS),
    "dag-db": Entrant(lambda beta: DagDB(beta=beta), 1e-2, flow=FLOW),
    "dag-kl": Entrant(lambda beta: DagKL(beta=beta, clip_range=CLIP), 1e-2, flow=FLOW),
    "refl": Entrant(lambda beta: ReFL(beta=beta), 3e-3, WHOLE),
    "draft-1": Entrant(lambda beta: Draft(beta=beta, k=1), 1e-3, WHOLE),
    "draft-lv": Entrant(lambda beta: Draft(beta=beta, low_variance_samples=2), 1e-3, WHOLE),
    "draft": Entrant(lambda beta: Draft(beta=beta, k="all"), 3e-3, WHOLE),
    "draft-tilted": Entrant(lambda beta: Draft(beta=beta, k="all", kl_weight=1.0), 3e-3, WHOLE),
    "alignprop": Entrant(lambda beta: AlignProp(beta=beta), 3e-3, WHOLE),
    "reward-weighted-regression": Entrant(
        lambda beta: RewardWeightedRegression(beta=beta), 1e-2, GROUPS
    ),
}
"""Adding an entrant is one line here."""

BYSTANDERS: dict[str, Callable[[float], list[Untrained]]] = {
    "best-of-n": lambda beta: [BestOfN(n=n) for n in (2, 4, 8, 16)],
    "guided-sampling": lambda beta: [
        GuidedSampling(beta=share * beta) for share in (0.25, 0.5, 1.0, 2.0)
    ],
}
"""References that train nothing: each a row of settings, from less reward to more."""

DEFAULT = ("residual-nabla-db", "adjoint-matching", "ddpo", "draft", "best-of-n")


def check_entrant(name: str) -> None:
    """Raise `UserError`, with the nearest name, where there is none of the name."""
    known = [*ENTRANTS, *BYSTANDERS]
    if name not in known:
        raise UserError(f"--methods: no method {name!r} here; {nearest(name, known)}")


def entrant_settings(name: str, beta: float, learning_rate: float | None) -> dict[str, Any]:
    """A trained entrant's part of a configuration.

    Args:
        learning_rate: in place of the entrant's own.
    """
    entrant = ENTRANTS[name]
    rate = entrant.learning_rate if learning_rate is None else learning_rate
    return {
        "method": entrant.method(beta).model_dump_named(),
        "flow": None if entrant.flow is None else dict(entrant.flow),
        "optimizer": {
            "learning_rate": rate,
            "flow_learning_rate": 3e-3,
            "schedule": "cosine",
            "warmup": 5,
        },
        "training": {**TRAINING, **entrant.training},
    }
