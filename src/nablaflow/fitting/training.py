"""Heads trained on comparisons or ratings: all members at once, each until its own held-out best.

Every member has a bootstrap sample of its own (Breiman's bagging): rows drawn with replacement
weigh as often as they were drawn, and those never drawn tell when that member stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from nablaflow.rewards.heads import Heads
from nablaflow.typing import Features

Told = Callable[[int], None]
"""Told the steps done, as they are."""


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained.

    Attributes:
        members: of the ensemble.
        hidden: units of each member's one hidden layer; 0: linear.
        penalty: of half the squared weights, on the mean loss of a row.
        steps: at most, of Adam on all rows.
        patience: steps without a better held-out loss after which a member stops.
    """

    members: int = 8
    hidden: int = 0
    learning_rate: float = 3e-3
    penalty: float = 1e-2
    steps: int = 2000
    patience: int = 200


@dataclass(frozen=True)
class Rows:
    """What the heads learn from, one row a judgement.

    Attributes:
        first: (row,) index of an image: the preferred one of a pair, or the rated one.
        second: (row,) index of the rejected image; None: these are ratings.
        target: (row,) ratings in units of their standard deviation, mean 0; None: these are pairs.
    """

    first: Int[Tensor, "row"]
    second: Int[Tensor, "row"] | None = None
    target: Float[Tensor, "row"] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, index: Tensor) -> Rows:
        return Rows(
            self.first[index],
            None if self.second is None else self.second[index],
            None if self.target is None else self.target[index],
        )


def losses(scores: Float[Tensor, "member image"], rows: Rows) -> Float[Tensor, "member row"]:
    """Of each row: Bradley-Terry, -log sigmoid(s_preferred - s_rejected), or half squared error."""
    first = scores[:, rows.first]
    if rows.second is not None:
        return softplus(scores[:, rows.second] - first)
    assert rows.target is not None
    return 0.5 * (first - rows.target).square()


def bootstrap(
    groups: Int[Tensor, "row"], members: int, generator: torch.Generator
) -> Float[Tensor, "member row"]:
    """How often each row was drawn for each member; the rows of a group go together."""
    names, index = groups.unique(return_inverse=True)
    drawn = torch.randint(len(names), (members, len(names)), generator=generator)
    counts = torch.zeros(members, len(names)).scatter_add_(1, drawn, torch.ones(drawn.shape))
    return counts[:, index]


def train_heads(
    features: Features,
    rows: Rows,
    weights: Float[Tensor, "member row"],
    settings: HeadSettings,
    generator: torch.Generator,
    on_progress: Told = lambda done: None,
) -> Heads:
    """Train every member on its weighted rows; rows of weight 0 tell when it stops.

    A member without such rows trains for all steps and keeps its last weights.

    Args:
        features: (image, feature), of all images that ``rows`` index.
        weights: (member, row), 0 for rows that a member must not learn from.
    """
    used = torch.cat([rows.first, rows.first if rows.second is None else rows.second]).unique()
    heads = _fresh(features[used], len(weights), settings.hidden, generator)
    trained = {
        name: v.requires_grad_() for name, v in heads.tensors().items() if name not in _FIXED
    }
    optimizer = torch.optim.Adam(trained.values(), lr=settings.learning_rate)
    inside = weights / weights.sum(1, keepdim=True)
    outside = (weights == 0).float()
    unseen = outside.sum(1)
    best = {name: value.detach().clone() for name, value in trained.items()}
    best_loss = torch.full((len(weights),), torch.inf)
    since = torch.zeros(len(weights))
    for step in range(settings.steps):
        each = losses(heads(features), rows)
        held_out = (each.detach() * outside).sum(1) / unseen.clamp_min(1)
        # Without rows to stop by, the latest is the best.
        better = (held_out < best_loss) | (unseen == 0)
        best_loss = torch.where(better, held_out, best_loss)
        since = torch.where(better, 0.0, since + 1)
        _keep(best, trained, better)
        if (since > settings.patience).all():
            break
        squares: Any = sum(v.square().sum() for n, v in trained.items() if n in _PENALISED)
        loss = (each * inside).sum() + settings.penalty / 2 * squares
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_progress(step + 1)
    on_progress(settings.steps)
    return replace(heads, **best)


_FIXED = ("mean", "std")
_PENALISED = ("direct", "inner", "slope")


def _keep(best: dict[str, Tensor], trained: dict[str, Tensor], better: Tensor) -> None:
    for name, value in trained.items():
        where = better.reshape(-1, *[1] * (value.ndim - 1))
        best[name] = torch.where(where, value.detach(), best[name])


def _fresh(features: Features, members: int, hidden: int, generator: torch.Generator) -> Heads:
    """Heads that say 0 for everything, and what standardises the features."""
    feature = features.shape[1]
    std = features.std(0)
    return Heads(
        mean=features.mean(0),
        # What hardly varies among the rated images must not be blown up elsewhere.
        std=std.clamp_min(0.01 * float(std.mean()) + 1e-6),
        direct=torch.zeros(members, feature),
        inner=torch.randn(members, hidden, feature, generator=generator) / feature**0.5,
        bias=torch.zeros(members, hidden),
        slope=torch.zeros(members, hidden),
        offset=torch.zeros(members),
    )
