"""One file per method: the whole objective on one page."""

from nablaflow.methods.contract import Losses, Method, Networks, TrainingBatch
from nablaflow.methods.nabla_db import NablaDB
from nablaflow.methods.residual_nabla_db import ResidualNablaDB

METHODS: dict[str, type[Method]] = {method.name: method for method in (ResidualNablaDB, NablaDB)}
"""Adding a method is one file and one entry here."""

__all__ = [
    "METHODS",
    "Losses",
    "Method",
    "NablaDB",
    "Networks",
    "ResidualNablaDB",
    "TrainingBatch",
]
