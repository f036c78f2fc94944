"""Value-gradient estimators, one file each, and the weightings of the steps."""

from typing import Annotated

from pydantic import Field

from nablaflow.guidance.adjoint import Adjoint
from nablaflow.guidance.contract import (
    Estimator,
    Networks,
    Path,
    TrainingBatch,
    ValueGradients,
)
from nablaflow.guidance.denoising_adjoint import DenoisingAdjoint
from nablaflow.guidance.forward_looking import (
    ForwardLooking,
    Gamma,
    check_gamma,
    forward_looking,
    gamma_table,
    look_ahead,
)
from nablaflow.guidance.forward_looking_flow import ForwardLookingFlow
from nablaflow.guidance.measured_gamma import measure_gamma
from nablaflow.guidance.n_step import NStep
from nablaflow.guidance.nabla_td import NablaTD
from nablaflow.guidance.path_ratio import path_log_ratio, tempered_weights
from nablaflow.guidance.terminal import Terminal
from nablaflow.guidance.weighting import WEIGHTINGS, Weighting, by_band, step_weight

AnyEstimator = Annotated[
    ForwardLooking | ForwardLookingFlow | Terminal | Adjoint | NablaTD | NStep | DenoisingAdjoint,
    Field(discriminator="name"),
]
"""Adding an estimator is one file and one name here."""

__all__ = [
    "WEIGHTINGS",
    "Adjoint",
    "AnyEstimator",
    "DenoisingAdjoint",
    "Estimator",
    "ForwardLooking",
    "ForwardLookingFlow",
    "Gamma",
    "NStep",
    "NablaTD",
    "Networks",
    "Path",
    "Terminal",
    "TrainingBatch",
    "ValueGradients",
    "Weighting",
    "by_band",
    "check_gamma",
    "forward_looking",
    "gamma_table",
    "look_ahead",
    "measure_gamma",
    "path_log_ratio",
    "step_weight",
    "tempered_weights",
]
