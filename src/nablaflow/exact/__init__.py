"""Problems whose tilted distribution is known, and how far from it a method ends."""

from nablaflow.exact.catalog import PROBLEMS, named_problem
from nablaflow.exact.contenders import CONTENDERS, Contender
from nablaflow.exact.evaluate import Result, evaluate
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.problem import Problem
from nablaflow.exact.rewards import BumpReward, LinearReward, QuadraticReward
from nablaflow.exact.training import LabSettings

__all__ = [
    "CONTENDERS",
    "PROBLEMS",
    "BumpReward",
    "Contender",
    "GaussianMixture",
    "LabSettings",
    "LinearReward",
    "Problem",
    "QuadraticReward",
    "Result",
    "evaluate",
    "named_problem",
]
