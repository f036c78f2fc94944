"""Value-gradient estimators, one file each."""

from nablaflow.guidance.forward_looking import Gamma, forward_looking, gamma_table

__all__ = ["Gamma", "forward_looking", "gamma_table"]
