"""Which judgements are held out together: nothing of a held-out row was seen in training."""

from __future__ import annotations

import torch
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from nablaflow.fitting.table import Judgements

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


def folds(group: Int[Tensor, "row"], generator: torch.Generator) -> list[Int[Tensor, "held_out"]]:
    """The rows of each fold: whole groups, in turns after a shuffle; at most ``FOLDS``."""
    names, index = group.unique(return_inverse=True)
    fold = torch.randperm(len(names), generator=generator) % min(FOLDS, len(names))
    place = fold[index]
    return [(place == number).nonzero()[:, 0] for number in range(int(fold.max()) + 1)]
