"""Value-gradient estimators, one file each, and the weightings of the steps."""

from typing import Annotated

from pydantic import Field

from nablaflow.estimators.adjoint import Adjoint
from nablaflow.estimators.contract import Estimator, Networks
from nablaflow.estimators.contrastive import LogFlowFit, fit_log_flow
from nablaflow.estimators.contrasts import ReferenceSamples, draw_reference
from nablaflow.estimators.denoising_adjoint import DenoisingAdjoint
from nablaflow.estimators.forward_looking import (
    ForwardLooking,
    Gamma,
    check_gamma,
    check_gamma_counts,
    forward_looking,
    gamma_table,
    look_ahead,
)
from nablaflow.estimators.forward_looking_flow import ForwardLookingFlow
from nablaflow.estimators.measured_gamma import measure_gamma
from nablaflow.estimators.n_step import NStep
from nablaflow.estimators.nabla_td import TemporalDifference
from nablaflow.estimators.path import Path, TrainingBatch, ValueGradients
from nablaflow.estimators.path_ratio import path_log_ratio, tempered_weights
from nablaflow.estimators.terminal import Terminal
from nablaflow.estimators.weighting import WEIGHTINGS, Weighting, by_band, step_weight

AnyEstimator = Annotated[
    ForwardLooking
    | ForwardLookingFlow
    | Terminal
    | Adjoint
    | TemporalDifference
    | NStep
    | DenoisingAdjoint,
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
    "LogFlowFit",
    "NStep",
    "Networks",
    "Path",
    "ReferenceSamples",
    "TemporalDifference",
    "Terminal",
    "TrainingBatch",
    "ValueGradients",
    "Weighting",
    "by_band",
    "check_gamma",
    "check_gamma_counts",
    "draw_reference",
    "fit_log_flow",
    "forward_looking",
    "gamma_table",
    "look_ahead",
    "measure_gamma",
    "path_log_ratio",
    "step_weight",
    "tempered_weights",
]
