"""Reward, diversity, prior preservation and distance to the tilt, each with its standard error."""

from nablaflow.features import Feature, pooled_pixels
from nablaflow.metrics.diversity import diversity
from nablaflow.metrics.energy import energy_distance, energy_distance_by_prompt
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.frechet import Projection, frechet_distance, frechet_to_reweighted
from nablaflow.metrics.pairs import Cloud, clouds
from nablaflow.metrics.reward import reward_mean
from nablaflow.metrics.summary import SampleSet, Summary, Yardstick, closing, summarize
from nablaflow.metrics.tilt import MIN_EFFECTIVE_SAMPLE_SIZE, ImportanceWeights

__all__ = [
    "MIN_EFFECTIVE_SAMPLE_SIZE",
    "Cloud",
    "Estimate",
    "Feature",
    "ImportanceWeights",
    "Projection",
    "SampleSet",
    "Summary",
    "Yardstick",
    "closing",
    "clouds",
    "diversity",
    "energy_distance",
    "energy_distance_by_prompt",
    "frechet_distance",
    "frechet_to_reweighted",
    "pooled_pixels",
    "reward_mean",
    "summarize",
]
