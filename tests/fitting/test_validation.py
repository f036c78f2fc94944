"""Folds keep groups whole; accuracy and calibration against counts by hand."""

from pathlib import Path

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.fitting.folds import folds, groups
from nablaflow.fitting.table import Judgements
from nablaflow.fitting.training import Rows
from nablaflow.fitting.validation import HeldOut, accuracy, calibration_error, figures, predictions


def judged(first, second=None, prompts=None):
    n = max([*first, *(second or [])]) + 1
    rows = Rows(torch.tensor(first), None if second is None else torch.tensor(second))
    return Judgements("pairs", [Path(str(i)) for i in range(n)], rows, prompts)


def held_out(predicted, target=None, fold=None):
    predicted = torch.tensor(predicted)
    target = None if target is None else torch.tensor(target)
    fold = torch.zeros(len(predicted)) if fold is None else torch.tensor(fold)
    kind = "pairs" if target is None else "ratings"
    return HeldOut(kind, predicted, torch.ones(len(predicted)), target, fold)


def test_a_prompt_is_never_on_both_sides():
    prompts = [f"prompt {n % 7}" for n in range(40)]
    given = judged(list(range(0, 80, 2)), list(range(1, 80, 2)), prompts)
    group, kind = groups(given)
    assert kind == "prompt"
    parts = folds(given, group, kind, torch.Generator().manual_seed(0))
    assert len(parts) == 5
    assert torch.cat(parts).sort().values.tolist() == list(range(40))
    inside = [{prompts[i] for i in part} for part in parts]
    assert sum(len(names) for names in inside) == len(set.union(*inside)) == 7


def test_rows_that_share_an_image_go_together():
    first = [0, 1, 2, *range(10, 40, 2)]
    second = [1, 2, 3, *range(11, 41, 2)]
    group, kind = groups(judged(first, second))
    assert kind == "image"
    assert group[0] == group[1] == group[2]
    assert len(group.unique()) == 16


def test_a_tournament_cannot_be_split_by_images():
    group, kind = groups(judged(list(range(20)), [*range(1, 20), 0]))
    assert kind == "row"
    assert group.tolist() == list(range(20))


def test_one_prompt_for_all_says_nothing():
    _, kind = groups(judged([0, 2, 4, 6, 8], [1, 3, 5, 7, 9], ["same"] * 5))
    assert kind == "image"


def rated(scores, first=None, prompts=None):
    target = torch.tensor(scores).float()
    target = (target - target.mean()) / target.std()
    first = list(range(len(scores))) if first is None else first
    images = [Path(str(i)) for i in range(max(first) + 1)]
    return Judgements("ratings", images, Rows(torch.tensor(first), target=target), prompts)


def folds_of(given, seed):
    group, kind = groups(given)
    return folds(given, group, kind, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rare", [2, 3, 5, 7])
def test_a_rare_rating_is_in_every_fold(seed, rare):
    given = rated([1.0] * rare + [0.0] * (24 - rare))
    parts = folds_of(given, seed)
    assert len(parts) == min(rare, 5)
    assert torch.cat(parts).sort().values.tolist() == list(range(24))
    for part in parts:
        assert len(given.rows.target[part].unique()) == 2
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_prompts_whose_ratings_are_all_the_same_are_held_out_with_others(seed):
    given = rated([n // 4 for n in range(20)], prompts=[f"{n // 4}" for n in range(20)])
    parts = folds_of(given, seed)
    assert len(parts) == 2
    assert all(len(given.rows.target[part].unique()) > 1 for part in parts)
    assert accuracy(HeldOut("ratings", *torch.zeros(2, 20), given.rows.target, _fold(parts)))


def _fold(parts):
    fold = torch.zeros(20)
    for number, part in enumerate(parts):
        fold[part] = float(number)
    return fold


@pytest.mark.parametrize(
    "given",
    [
        rated([1.0] + [0.0] * 23),
        rated([n // 10 for n in range(20)], prompts=[f"{n // 10}" for n in range(20)]),
        rated(list(range(20)), [n // 10 for n in range(20)], [f"{n // 10}" for n in range(20)]),
    ],
    ids=["one row apart", "two prompts of one rating each", "two prompts of one image each"],
)
def test_what_cannot_be_held_out_is_refused(given):
    with pytest.raises(UserError, match="cannot be measured; rate more images") as error:
        folds_of(given, 0)
    assert ("leave the column prompt out" in str(error.value)) == (given.prompts is not None)


def test_no_figure_is_made_of_nothing():
    with pytest.raises(ValueError, match="no two ratings of one fold differ"):
        accuracy(held_out([0.0, 1.0], target=[1.0, 2.0], fold=[0.0, 1.0]))


def test_pairs_told_right_are_counted_and_a_tie_is_half():
    share, error = accuracy(held_out([1.0, 2.0, -1.0, 0.0]))
    assert share == 2.5 / 4
    assert error == pytest.approx((share * (1 - share) / 4) ** 0.5)


def test_ratings_are_compared_within_their_fold():
    """Fold 0: (1, 2) right, fold 1: (0, 5) wrong, (5, 5) not counted; never over folds."""
    found = held_out(
        [0.0, 1.0, 9.0, 3.0, 4.0], target=[1.0, 2.0, 0.0, 5.0, 5.0], fold=[0.0, 0.0, 1.0, 1.0, 1.0]
    )
    assert accuracy(found)[0] == pytest.approx(1 / 3)


def test_said_and_found_agree_where_odds_are_true():
    generator = torch.Generator().manual_seed(0)
    odds = 2 * torch.randn(20_000, generator=generator)
    won = torch.rand(20_000, generator=generator) < odds.sigmoid()
    true = torch.where(won, odds, -odds)
    assert calibration_error(held_out(true.tolist())) < 0.015
    assert calibration_error(held_out((4 * true).tolist())) > 0.1


def test_log_loss_of_a_coin_is_log_two():
    assert figures(held_out([0.0] * 10))["log_loss"] == pytest.approx(
        torch.tensor(2.0).log().item()
    )


def test_the_spread_of_a_pair_is_that_of_the_difference():
    scores = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    mean, spread = predictions(scores, Rows(torch.tensor([0]), torch.tensor([1])))
    assert mean.item() == 1.5
    assert spread.item() == pytest.approx(torch.tensor([1.0, 2.0]).std().item())
