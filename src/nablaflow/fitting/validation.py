"""How good a fit is where it did not look: cross-validated accuracy, calibration, spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from nablaflow.fitting.training import Rows
from nablaflow.rewards.heads import mean_and_spread

BINS = 8


@dataclass(frozen=True)
class HeldOut:
    """Judgements as heads saw them that had not learned from them.

    Attributes:
        kind: "pairs" or "ratings".
        predicted: (row,) pairs: score of the preferred less that of the rejected image; ratings:
            the score, standardised.
        spread: (row,) standard deviation over the ensemble of the same.
        target: (row,) the rating, standardised; None: pairs.
        fold: (row,) the fold that held it out.
    """

    kind: str
    predicted: Float[Tensor, "row"]
    spread: Float[Tensor, "row"]
    target: Float[Tensor, "row"] | None
    fold: Float[Tensor, "row"]

    def take(self, chosen: Bool[Tensor, "row"]) -> HeldOut:
        """Those of some rows."""
        target = None if self.target is None else self.target[chosen]
        kept = (self.predicted[chosen], self.spread[chosen], target, self.fold[chosen])
        return HeldOut(self.kind, *kept)


def predictions(
    scores: Float[Tensor, "member image"], rows: Rows
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
    """Mean and standard deviation over the members of what is said of each row."""
    of_rows = scores[:, rows.first]
    return mean_and_spread(of_rows if rows.second is None else of_rows - scores[:, rows.second])


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: what was said and what was so, in bins of equally many rows."""

    said: list[float]
    was: list[float]
    count: list[int]


def accuracy(held_out: HeldOut) -> tuple[float, float]:
    """Share of comparisons that are told right, and its standard error.

    Pairs: their own; a tie is half. Ratings: all pairs of one fold whose ratings differ, which are
    not independent, so the error is that of as many comparisons as there are rows.

    Raises:
        ValueError: no two ratings of one fold differ; ``folds`` makes none like that.
    """
    if held_out.target is None:
        right = _right(held_out.predicted)
    else:
        right = _right(_differences(held_out))
    if not len(right):
        raise ValueError("no two ratings of one fold differ")
    share = float(right.mean())
    return share, (share * (1 - share) / min(len(right), len(held_out.predicted))) ** 0.5


def _right(signed: Tensor) -> Tensor:
    return (signed.sign() + 1) / 2


def _differences(held_out: HeldOut) -> Tensor:
    """Of two ratings of one fold: predicted difference, positive where it has the right sign."""
    assert held_out.target is not None
    first, second = torch.triu_indices(len(held_out.fold), len(held_out.fold), offset=1)
    truth = held_out.target[first] - held_out.target[second]
    counted: Bool[Tensor, "pair"] = (held_out.fold[first] == held_out.fold[second]) & (truth != 0)
    predicted = held_out.predicted[first] - held_out.predicted[second]
    return (predicted * truth.sign())[counted]


def figures(held_out: HeldOut) -> dict[str, float]:
    """What is printed and kept in the file."""
    share, error = accuracy(held_out)
    found = {
        "accuracy": share,
        "accuracy_se": error,
        "calibration_error": calibration_error(held_out),
        "spread_mean": float(held_out.spread.mean()),
    }
    if held_out.target is None:
        # log 2 is that of a coin.
        return {**found, "log_loss": float(softplus(-held_out.predicted).mean())}
    left = (held_out.target - held_out.predicted).square().mean()
    return {**found, "r2": float(1 - left / held_out.target.var(correction=0))}


def reliability(held_out: HeldOut) -> Reliability:
    """Pairs: probability that the likelier one is preferred, said and found. Ratings: both scores.

    For pairs the side that is said to be preferred is the one looked at, so what is said is at
    least one half.
    """
    if held_out.target is None:
        said, was = held_out.predicted.abs().sigmoid(), _right(held_out.predicted)
    else:
        said, was = held_out.predicted, held_out.target
    order = said.argsort()
    parts = [part for part in order.tensor_split(BINS) if len(part)]
    return Reliability(
        said=[float(said[part].mean()) for part in parts],
        was=[float(was[part].mean()) for part in parts],
        count=[len(part) for part in parts],
    )


def calibration_error(held_out: HeldOut) -> float:
    """Mean over the rows of |said - was| in their bin (expected calibration error, ECE)."""
    curve = reliability(held_out)
    off = zip(curve.said, curve.was, curve.count, strict=True)
    return sum(abs(said - was) * n for said, was, n in off) / sum(curve.count)
