"""How far samples are from an exact distribution: pure functions of points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.exact.mixture import GaussianMixture
from nablaflow.metrics.pairs import Cloud, between

Sample = Float[Tensor, "n dim"]
OtherSample = Float[Tensor, "m dim"]


def energy_distance(x: Sample, y: OtherSample) -> float:
    """Squared energy distance (Székely and Rizzo, 2013), in units of length.

    2 mean|x - y| - mean|x - x'| - mean|y - y'| over all pairs, each point with itself included: a
    V-statistic, so never negative. `nablaflow.metrics.energy` leaves those zeros out and is
    unbiased, and between two samples of one distribution scatters about zero. Here the value of
    two exact samples is a floor above zero, 2 E|X - X'| / n on average for n points each, and an
    error means something as a multiple of it.

    Args:
        x: at least two points.
        y: the same, not necessarily as many.
    """
    # Far from the origin the distances would come out as rounding error.
    centre = y.double().mean(0)
    first, second = Cloud.of(x.double() - centre), Cloud.of(y.double() - centre)
    value = 2.0 * between(first, second)[0].value - _within(first) - _within(second)
    return max(value.item(), 0.0)


def _within(cloud: Cloud) -> Tensor:
    """Mean distance over all pairs; a cloud's own mean leaves out each point with itself."""
    return cloud.within.value * (1.0 - 1.0 / len(cloud))


def sliced_wasserstein(
    x: Sample, y: OtherSample, generator: torch.Generator, projections: int = 200
) -> float:
    """Sliced 2-Wasserstein distance, in units of length.

    The root of the mean, over random directions, of the squared 2-Wasserstein distance of the
    points' projections (Bonneel, Rabin, Peyré and Pfister, 2015, "Sliced and Radon Wasserstein
    barycenters of measures"), which in one dimension pairs them in order of size.

    Raises:
        ValueError: the samples differ in size.
    """
    if x.shape != y.shape:
        raise ValueError(f"samples of shapes {tuple(x.shape)} and {tuple(y.shape)}; give one size")
    directions = torch.randn(x.shape[1], projections, dtype=torch.float64, generator=generator)
    directions = directions / directions.norm(dim=0)
    ordered = [(points.double() @ directions).sort(dim=0).values for points in (x, y)]
    return (ordered[0] - ordered[1]).square().mean().sqrt().item()


def mode_weight_error(
    x: Sample, modes: GaussianMixture, weights: Float[Tensor, "component"]
) -> float:
    """Largest error of a component's share of the samples, between 0 and 1.

    A point counts for each component with the component's probability given the point. For exact
    samples of ``modes`` the expectation of such a share is the component's weight, however much
    the components overlap, so that what is left is Monte Carlo error.

    Args:
        x: the samples.
        modes: the mixture whose components are counted.
        weights: the share that each should have.
    """
    shares = modes.responsibilities(x.double()).mean(0)
    return (shares - weights.to(shares)).abs().max().item()


def log_det_covariance(x: Sample) -> float:
    """Log determinant of the sample covariance, in nats: what a collapse brings down.

    Its unbiased form, by n - 1. With no more points than dimensions it is singular, and its log
    minus infinity or rounding error.
    """
    centred = x.double() - x.double().mean(0)
    covariance = centred.T @ centred / (len(x) - 1)
    return torch.linalg.slogdet(covariance).logabsdet.item()


def mean_distance(x: Sample, y: OtherSample) -> float:
    """E|X - Y| over all pairs, in units of length."""
    return between(Cloud.of(x), Cloud.of(y))[0].value.item()
