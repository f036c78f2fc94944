"""One file per method: the whole objective on one page."""

from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.adjoint_matching import AdjointMatching
from nablaflow.methods.alignprop import AlignProp
from nablaflow.methods.best_of_n import BestOfN
from nablaflow.methods.contract import Losses, Method
from nablaflow.methods.dag_db import DagDB
from nablaflow.methods.dag_kl import DagKL
from nablaflow.methods.ddpo import DDPO
from nablaflow.methods.diffusion_nft import DiffusionNFT
from nablaflow.methods.draft import Draft
from nablaflow.methods.flow_grpo import FlowGRPO
from nablaflow.methods.guided_sampling import GuidedSampling
from nablaflow.methods.matching import ValueMatching
from nablaflow.methods.nabla_db import NablaDB
from nablaflow.methods.nabla_td import NablaTD
from nablaflow.methods.path_weighted_matching import PathWeightedMatching
from nablaflow.methods.refl import ReFL
from nablaflow.methods.residual_nabla_db import ResidualNablaDB
from nablaflow.methods.reward_weighted import RewardWeightedRegression
from nablaflow.methods.terminal import TerminalMatching
from nablaflow.methods.untrained import Untrained
from nablaflow.methods.vgg_flow import VGGFlow

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ResidualNablaDB,
        NablaDB,
        NablaTD,
        AdjointMatching,
        TerminalMatching,
        PathWeightedMatching,
        ValueMatching,
        ReFL,
        Draft,
        AlignProp,
        DDPO,
        DagDB,
        DagKL,
        RewardWeightedRegression,
        FlowGRPO,
        DiffusionNFT,
        VGGFlow,
    )
}
"""Adding a method is one file and one entry here."""

UNTRAINED: dict[str, type[Untrained]] = {
    reference.name: reference for reference in (BestOfN, GuidedSampling)
}
"""What a method should beat; adding one is one file and one entry here."""

__all__ = [
    "DDPO",
    "METHODS",
    "UNTRAINED",
    "AdjointMatching",
    "AlignProp",
    "BestOfN",
    "DagDB",
    "DagKL",
    "DiffusionNFT",
    "Draft",
    "FlowGRPO",
    "GuidedSampling",
    "Losses",
    "Method",
    "NablaDB",
    "NablaTD",
    "Networks",
    "PathWeightedMatching",
    "ReFL",
    "ResidualNablaDB",
    "RewardWeightedRegression",
    "TerminalMatching",
    "TrainingBatch",
    "Untrained",
    "VGGFlow",
    "ValueMatching",
]
