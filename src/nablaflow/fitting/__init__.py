"""Fits a reward to ratings or pairs of images: `nablaflow reward fit`."""

from nablaflow.fitting.files import check_out, save
from nablaflow.fitting.fit import Fit, fit, fit_folder
from nablaflow.fitting.score import ScoredImage, score_folder
from nablaflow.fitting.table import Judgements, read_judgements
from nablaflow.fitting.training import HeadSettings
from nablaflow.fitting.validation import HeldOut, accuracy, reliability

__all__ = [
    "Fit",
    "HeadSettings",
    "HeldOut",
    "Judgements",
    "ScoredImage",
    "accuracy",
    "check_out",
    "fit",
    "fit_folder",
    "read_judgements",
    "reliability",
    "save",
    "score_folder",
]
