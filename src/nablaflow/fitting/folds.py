"""Which judgements are held out together: nothing of a held-out row was seen in training."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.fitting.table import Judgements
from nablaflow.fitting.training import Rows

FOLDS = 5
PROMPT, IMAGE, ROW = "prompt", "image", "row"


def groups(judgements: Judgements) -> tuple[Int[Tensor, "row"], str]:
    """The group of every row, and what makes one.

    Rows of one prompt are a group. Without prompts, or with one alone, rows that share an image,
    directly or over others, are one; where that ties too much together to hold out a fold, as in a
    tournament, every row stands alone and an image may be known from another row.
    """
    if judgements.prompts is not None:
        names = {name: i for i, name in enumerate(dict.fromkeys(judgements.prompts))}
        if len(names) > 1:
            return torch.tensor([names[prompt] for prompt in judgements.prompts]), PROMPT
    linked = _linked(judgements)
    largest = int(linked.bincount().max())
    if largest * FOLDS <= len(linked) * 2:
        return linked, IMAGE
    return torch.arange(len(linked)), ROW


def _linked(judgements: Judgements) -> Int[Tensor, "row"]:
    rows, n = judgements.rows, len(judgements.images)
    if rows.second is None:
        return rows.first.unique(return_inverse=True)[1]
    edges = (torch.ones(len(rows)).numpy(), (rows.first.numpy(), rows.second.numpy()))
    _, label = connected_components(coo_array(edges, shape=(n, n)), directed=False)
    return torch.from_numpy(label).long()[rows.first]


def folds(
    judgements: Judgements, group: Int[Tensor, "row"], by: str, generator: torch.Generator
) -> list[Int[Tensor, "held_out"]]:
    """The rows of each fold, whole groups; as many folds up to ``FOLDS`` as can all be measured.

    Groups are dealt in turns after a shuffle. Ratings are stratified: the turns go by the groups'
    mean ratings, and the shuffle is left among equal ones, so a rare rating is not all in one fold.

    Args:
        group: of every row.
        by: what makes one, for the message.

    Raises:
        UserError: in every split a fold holds nothing that can be told right or wrong, or leaves
            nothing to learn from.
    """
    names, index = group.unique(return_inverse=True)
    order = torch.randperm(len(names), generator=generator).argsort()
    if judgements.rows.target is not None:
        order = order[_means(judgements.rows.target, index)[order].argsort(stable=True)]
    for count in range(min(FOLDS, len(names)), 1, -1):
        place = (order.argsort() % count)[index]
        parts = [(place == number).nonzero()[:, 0] for number in range(count)]
        if all(_can_be_measured(judgements.rows, place == number) for number in range(count)):
            return parts
    remedy = f" or leave the column {PROMPT} out" if by == PROMPT else ""
    raise UserError(
        f"ratings: in every split by {by} some side has one rating or one image alone, so the fit "
        f"cannot be measured; rate more images differently{remedy}"
    )


def _means(target: Tensor, index: Tensor) -> Tensor:
    """The mean rating of every group."""
    return torch.zeros(int(index.max()) + 1).scatter_reduce(
        0, index, target, "mean", include_self=False
    )


def _can_be_measured(rows: Rows, held: Bool[Tensor, "row"]) -> bool:
    """Ratings differ among those held out and among the rest, of two images at least."""
    if rows.target is None:
        return True
    sides = (rows.target[held], rows.target[~held])
    apart = all(len(side) > 1 and bool(side.min() < side.max()) for side in sides)
    return apart and len(rows.first[~held].unique()) > 1
