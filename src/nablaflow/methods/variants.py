"""The named configurations of methods: one list for laboratory, comparison and documentation.

A name is one object in both. What a method is trained with (learning rate, batches) is no part of
it: laboratory and comparison each have their own. ``-published`` is as its authors wrote it;
``-tilted`` has the term that makes the tilt by beta its optimum, where the plain name has none.
``residual-nabla-db`` is the forward-looking one here, since nothing is fitted unasked; a run with a
bank is ``-contrastive``, at the strength that `training.calibrate` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nablaflow.methods import METHODS
from nablaflow.methods.adjoint_matching import AdjointMatching
from nablaflow.methods.alignprop import AlignProp
from nablaflow.methods.best_of_n import BestOfN
from nablaflow.methods.contract import Method
from nablaflow.methods.dag_db import DagDB
from nablaflow.methods.dag_kl import DagKL
from nablaflow.methods.ddpo import DDPO
from nablaflow.methods.diffusion_nft import DiffusionNFT
from nablaflow.methods.draft import Draft
from nablaflow.methods.flow_grpo import FlowGRPO
from nablaflow.methods.guided_sampling import GuidedSampling
from nablaflow.methods.nabla_db import NablaDB
from nablaflow.methods.nabla_td import NablaTD
from nablaflow.methods.path_weighted_matching import PathWeightedMatching
from nablaflow.methods.refl import ReFL
from nablaflow.methods.residual_nabla_db import ResidualNablaDB
from nablaflow.methods.reward_weighted import RewardWeightedRegression
from nablaflow.methods.terminal import TerminalMatching
from nablaflow.methods.untrained import Untrained
from nablaflow.methods.vgg_flow import VGGFlow

CLIP = 1e-2  # per value, for states of some hundred values; the published 1e-4 is for 16,384

VARIANTS: Mapping[str, Callable[[float], Method]] = {
    "residual-nabla-db": lambda beta: ResidualNablaDB(beta=beta, value="forward-looking"),
    "residual-nabla-db-published": lambda beta: ResidualNablaDB.published(beta, 0.0),
    "residual-nabla-db-contrastive": lambda beta: ResidualNablaDB(beta=beta, value="contrastive"),
    "nabla-db": lambda beta: NablaDB(beta=beta),
    "nabla-td": lambda beta: NablaTD(beta=beta, td_lambda=0.5),
    "adjoint-matching": lambda beta: AdjointMatching(beta=beta),
    "adjoint-matching-constant": lambda beta: AdjointMatching(beta=beta, weighting="constant"),
    "adjoint-matching-exact": lambda beta: AdjointMatching(beta=beta, step="exact"),
    "terminal": lambda beta: TerminalMatching(beta=beta),
    "path-weighted-matching": lambda beta: PathWeightedMatching(beta=beta),
    "path-weighted-matching-adjoint": lambda beta: PathWeightedMatching(
        beta=beta, adjoint_above=0.0
    ),
    "ddpo": lambda beta: DDPO.tilted(beta, CLIP),
    "ddpo-published": lambda beta: DDPO(beta=beta, clip_range=CLIP),
    "dag-db": lambda beta: DagDB(beta=beta),
    "dag-kl": lambda beta: DagKL(beta=beta, clip_range=CLIP),
    "refl": lambda beta: ReFL(beta=beta),
    "refl-all-steps": lambda beta: ReFL(beta=beta, last=1.0),
    "draft-1": lambda beta: Draft(beta=beta, k=1),
    "draft-lv": lambda beta: Draft(beta=beta, low_variance_samples=2),
    "draft-lv-tilted": lambda beta: Draft(beta=beta, low_variance_samples=2, kl_weight=1.0),
    "draft": lambda beta: Draft(beta=beta, k="all"),
    "draft-tilted": lambda beta: Draft(beta=beta, k="all", kl_weight=1.0),
    "alignprop": lambda beta: AlignProp(beta=beta),
    "alignprop-tilted": lambda beta: AlignProp(beta=beta, kl_weight=1.0),
    "reward-weighted-regression": lambda beta: RewardWeightedRegression(beta=beta),
    "reward-weighted-regression-tilted": lambda beta: RewardWeightedRegression(
        beta=beta, weights="tilt"
    ),
    "flow-grpo": lambda beta: FlowGRPO(beta=beta, clip_range=CLIP),
    "diffusion-nft": lambda beta: DiffusionNFT(beta=beta),
    "vgg-flow": lambda beta: VGGFlow(beta=beta),
}
"""Name to what makes the method for a tilt by beta; adding one is one line here."""

UNTRAINED_VARIANTS: Mapping[str, Callable[[float], Untrained]] = {
    "best-of-n": lambda beta: BestOfN(),
    "guided-sampling": lambda beta: GuidedSampling(beta=beta),
    "guided-sampling-exact": lambda beta: GuidedSampling(beta=beta, gamma="one", step="exact"),
}
"""The same of the references that train nothing."""


def without_variant(name: str) -> type[Method] | None:
    """A method of the list that has no line above yet, if beta is all it needs; else None.

    So a new one runs in laboratory and comparison at once, with the settings of any other.
    """
    kind = METHODS.get(name)
    if kind is None or name in VARIANTS:
        return None
    needed = {key for key, field in kind.model_fields.items() if field.is_required()}
    return kind if needed <= {"beta"} else None
