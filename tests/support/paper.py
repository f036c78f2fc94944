"""Residual ∇-DB with the paper's conditions, the step weighted by sigma_k^2."""

from typing import Any

from nablaflow.methods import ResidualNablaDB


def paper(**changes: Any) -> ResidualNablaDB:
    """Both residuals of the paper, by its step; ``changes`` are settings of the method."""
    settings: dict[str, Any] = {
        "step": "published",
        "gamma": "alpha_bar",
        "reverse_weight": 1.0,
        "forward_looking_predictor": "policy",
        "weighting": "sigma2",
    }
    return ResidualNablaDB(**{**settings, **changes})
