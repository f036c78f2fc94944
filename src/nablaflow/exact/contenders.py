"""Methods as they compete in the laboratory: each with the settings that it was tuned to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nablaflow.errors import UserError, nearest
from nablaflow.exact.training import LabSettings
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
    NablaTD,
    PathWeightedMatching,
    ReFL,
    ResidualNablaDB,
    RewardWeightedRegression,
    TerminalMatching,
    Untrained,
)


@dataclass(frozen=True)
class Contender:
    """A method for any tilt, and how it is trained; or a reference that is not trained.

    Attributes:
        method: from beta.
        settings: docs/estimators.md has the grid that they were chosen from.
    """

    method: Callable[[float], Method | Untrained]
    settings: LabSettings = field(default_factory=LabSettings)


DEFAULT = "path-weighted-matching"
"""The laboratory's default method, ours."""

PUBLISHED = "residual-nabla-db-published"
"""The published form, as published."""

TUNED = LabSettings(
    learning_rate=5e-3, flow_learning_rate=5e-3, transition_fraction=0.8, steps_per_rollout=4
)
"""The best of the grid in docs/estimators.md, or as good as any, for all that were tuned."""

CONTENDERS: dict[str, Contender] = {
    "adjoint-matching": Contender(
        lambda beta: AdjointMatching(beta=beta, weighting="constant"), TUNED
    ),
    PUBLISHED: Contender(lambda beta: ResidualNablaDB.published(beta, 0.0), TUNED),
    "residual-nabla-db": Contender(lambda beta: ResidualNablaDB(beta=beta), TUNED),
    "terminal": Contender(lambda beta: TerminalMatching(beta=beta), TUNED),
    "nabla-td": Contender(lambda beta: NablaTD(beta=beta, td_lambda=0.5), TUNED),
    "path-weighted-matching": Contender(lambda beta: PathWeightedMatching(beta=beta), TUNED),
    "refl": Contender(lambda beta: ReFL(beta=beta)),
    "draft": Contender(lambda beta: Draft(beta=beta, k="all", kl_weight=1.0, checkpointing=False)),
    "draft-lv": Contender(
        lambda beta: Draft(beta=beta, low_variance_samples=2, kl_weight=1.0, checkpointing=False)
    ),
    "alignprop": Contender(lambda beta: AlignProp(beta=beta, kl_weight=1.0, checkpointing=False)),
    "best-of-n": Contender(lambda beta: BestOfN()),
    "guided-sampling": Contender(lambda beta: GuidedSampling(beta=beta)),
    "ddpo": Contender(lambda beta: DDPO.tilted(beta)),
    "ddpo-published": Contender(lambda beta: DDPO(beta=beta)),
    "dag-db": Contender(lambda beta: DagDB(beta=beta)),
    "dag-kl": Contender(lambda beta: DagKL(beta=beta)),
    "reward-weighted-regression": Contender(
        lambda beta: RewardWeightedRegression(beta=beta, weights="tilt")
    ),
    "reward-weighted-regression-published": Contender(
        lambda beta: RewardWeightedRegression(beta=beta)
    ),
}
"""Adding a contender is one line here."""


def contender(name: str) -> Contender:
    """A contender of the list.

    Raises:
        UserError: there is none of the name.
    """
    if name not in CONTENDERS:
        raise UserError(f"--method: no method {name!r} here; {nearest(name, CONTENDERS)}")
    return CONTENDERS[name]
