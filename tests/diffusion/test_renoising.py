"""Transitions of the noising process: their moments given x_0, and whose noise is whose."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nablaflow.diffusion import (
    ReverseProcess,
    Trajectories,
    Transitions,
    build_process,
    noised_afresh,
    trajectory_noise,
)
from tests.support.schedules import STABLE_DIFFUSION

STEPS = 6


def process() -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)


def trajectories(x0: Tensor, keep: Sequence[int]) -> Trajectories:
    """Each keeps all of ``keep``, with states that no sampler made."""
    rows = torch.arange(len(x0)).repeat(len(keep))
    k = torch.tensor(keep).repeat_interleave(len(x0))
    nowhere = torch.full((len(k), *x0.shape[1:]), 7.0)
    transitions = Transitions(nowhere, nowhere, k, nowhere, rows)
    return Trajectories(x0, transitions, torch.zeros(len(x0)))


def only(*levels: int) -> Tensor:
    found = torch.zeros(STEPS + 1, dtype=torch.bool)
    found[list(levels)] = True
    return found


def test_the_moments_are_those_of_the_noising_process() -> None:
    n, k = 200_000, 4
    x0 = torch.full((n, 1, 1, 1), 1.5)
    generator = torch.Generator().manual_seed(0)
    found = noised_afresh(process(), trajectories(x0, [k]), only(k), generator).transitions
    alpha_bar = process().alpha_bar / process().alpha_bar[0]
    x, x_next = found.x.flatten(), found.x_next.flatten()
    for values, level in ((x, k), (x_next, k - 1)):
        assert abs(values.mean() - 1.5 * alpha_bar[level].sqrt()) < 0.01
        assert abs(values.var() - (1 - alpha_bar[level])) < 0.01
    covariance = torch.cov(torch.stack([x, x_next]))[0, 1]
    expected = (alpha_bar[k] / alpha_bar[k - 1]).sqrt() * (1 - alpha_bar[k - 1])
    assert abs(covariance - expected) < 0.01


def test_other_levels_and_the_clean_states_stay() -> None:
    x0 = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    before = trajectories(x0, [2, 5])
    generator = torch.Generator().manual_seed(0)
    found = noised_afresh(process(), before, only(5), generator)
    same = before.transitions.k == 2
    assert torch.equal(found.transitions.x[same], before.transitions.x[same])
    assert torch.equal(found.x0, x0)
    assert (found.transitions.x[~same] != 7.0).all()
    assert found.transitions.epsilon[~same].isnan().all()
    assert (before.transitions.x == 7.0).all()


def test_a_split_batch_gets_the_same_noise() -> None:
    x0 = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    seeds = [3, 1, 4, 15]

    def noised(rows: slice) -> Tensor:
        part = trajectories(x0[rows], [5])
        return noised_afresh(
            process(), part, only(3, 5), trajectory_noise(seeds[rows])
        ).transitions.x

    whole = noised(slice(0, 4))
    parts = torch.cat([noised(slice(0, 1)), noised(slice(1, 4))])
    assert torch.equal(whole, parts)
    assert len(whole.flatten(1).unique(dim=0)) == 4
