"""Which steps of a trajectory are trained: a stratified draw."""

from itertools import pairwise

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from nablaflow.diffusion import draw_transitions

EVEN = (20, 5)
UNEVEN = (20, 7)


def draw(trajectories: int, steps: int, strata: int, *, always_last: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return draw_transitions(trajectories, steps, strata, generator, always_last=always_last)


def test_each_stratum_gives_exactly_one_step() -> None:
    steps, strata = EVEN
    drawn = draw(500, steps, strata)
    stratum = (drawn - 1) // (steps // strata)
    assert torch.equal(stratum, torch.arange(strata).expand(500, strata))


@pytest.mark.parametrize(("steps", "strata"), [UNEVEN, (50, 8), (3, 2)])
def test_uneven_strata_are_disjoint_and_leave_no_step_out(steps: int, strata: int) -> None:
    columns = [set(column.tolist()) for column in draw(3000, steps, strata).T]
    assert sorted(k for column in columns for k in column) == list(range(1, steps + 1))
    sizes = [len(column) for column in columns]
    assert max(sizes) - min(sizes) <= 1
    assert all(max(low) < min(high) for low, high in pairwise(columns))


@pytest.mark.parametrize(("steps", "strata"), [EVEN, UNEVEN])
def test_steps_are_uniform_within_their_stratum(steps: int, strata: int) -> None:
    for column in draw(4000, steps, strata).T:
        _, counts = column.unique(return_counts=True)
        assert chisquare(counts.numpy()).pvalue > 1e-3


def test_trajectories_are_drawn_on_their_own() -> None:
    first, second = draw(4000, *EVEN)[:, :2].T
    table = torch.zeros(4, 4).index_put_((first - 1, second - 5), torch.ones(4000), accumulate=True)
    assert chisquare(table.flatten().numpy()).pvalue > 1e-3


def test_every_step_is_drawn_when_there_are_as_many_strata() -> None:
    assert torch.equal(draw(3, 6, 6), torch.arange(1, 7).expand(3, 6))


def test_the_last_transition_comes_besides_the_drawn_ones() -> None:
    plain = draw(40, *EVEN)
    drawn = draw(40, *EVEN, always_last=True)
    assert (drawn[:, 0] == 1).all()
    assert torch.equal(drawn[:, 1:], plain)


def test_the_generator_alone_decides() -> None:
    torch.manual_seed(1)
    first = draw(8, *EVEN)
    torch.manual_seed(2)
    assert torch.equal(draw(8, *EVEN), first)


@pytest.mark.parametrize("strata", [0, 21])
def test_strata_that_do_not_fit_are_an_error(strata: int) -> None:
    with pytest.raises(ValueError, match=f"{strata} strata do not fit 20 steps"):
        draw(1, 20, strata)
