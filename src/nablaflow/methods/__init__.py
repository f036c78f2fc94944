"""One file per method: the whole objective on one page."""

from nablaflow.guidance import Networks, TrainingBatch
from nablaflow.methods.adjoint_matching import AdjointMatching
from nablaflow.methods.contract import Losses, Method
from nablaflow.methods.matching import ValueMatching
from nablaflow.methods.nabla_db import NablaDB
from nablaflow.methods.nabla_td import NablaTD
from nablaflow.methods.residual_nabla_db import ResidualNablaDB
from nablaflow.methods.terminal import TerminalMatching

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ResidualNablaDB,
        NablaDB,
        NablaTD,
        AdjointMatching,
        TerminalMatching,
        ValueMatching,
    )
}
"""Adding a method is one file and one entry here."""

__all__ = [
    "METHODS",
    "AdjointMatching",
    "Losses",
    "Method",
    "NablaDB",
    "NablaTD",
    "Networks",
    "ResidualNablaDB",
    "TerminalMatching",
    "TrainingBatch",
    "ValueMatching",
]
