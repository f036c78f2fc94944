"""From a folder of judged images to a reward: features, cross-validation, the final heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow import features
from nablaflow.fitting.folds import folds, groups
from nablaflow.fitting.images import check_images, image_features
from nablaflow.fitting.table import Judgements, read_judgements
from nablaflow.fitting.training import HeadSettings, Told, bootstrap, train_heads
from nablaflow.fitting.validation import HeldOut, accuracy, figures, predictions
from nablaflow.progress import StartProgress, unseen
from nablaflow.rewards.heads import Heads
from nablaflow.typing import Features


@dataclass(frozen=True)
class Fit:
    """A fitted reward, and how good it is on judgements that it had not learned from.

    Attributes:
        heads: their scores are log-odds of being preferred, or in the units of the ratings.
        about: what the file says of them.
    """

    heads: Heads
    held_out: HeldOut
    about: dict[str, Any]


def fit_folder(
    folder: Path,
    name: str,
    settings: HeadSettings,
    *,
    pessimism: float = 0.0,
    seed: int = 0,
    kind: str | None = None,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    start: StartProgress = unseen,
) -> Fit:
    """Fit a reward to the ``ratings.csv`` or ``pairs.csv`` of a folder; writes nothing.

    Args:
        name: of the features, see ``features.FEATURES``.
        pessimism: the file's default, in standard deviations of the ensemble.
        kind: "ratings" or "pairs", where the folder has both.
        weights: of the features.
        device: that the features are computed on; the heads are trained on the processor.
        start: shows how the work goes.

    Raises:
        UserError: the judgements, an image or the features cannot be used.
    """
    features.check_name(name)
    judgements = read_judgements(folder, kind)
    check_images(judgements.images, start("images", len(judgements.images)))
    extractor = features.load(name, weights=weights, device=device)
    told = start("features", len(judgements.images))
    found = image_features(judgements.images, extractor, told, device)
    made_of = {"weights": weights, "fingerprint": features.fingerprint(extractor, device)}
    done = fit(judgements, found, name, settings, pessimism=pessimism, seed=seed, start=start)
    return replace(done, about={**done.about, **made_of})


def fit(
    judgements: Judgements,
    found: Features,
    name: str,
    settings: HeadSettings,
    *,
    pessimism: float = 0.0,
    seed: int = 0,
    start: StartProgress = unseen,
) -> Fit:
    """Cross-validate, then train on all judgements.

    Args:
        found: (image, d), features of the judgements' images.
        name: what they are called.
    """
    generator = torch.Generator().manual_seed(seed)
    group, grouped_by = groups(judgements)
    parts = folds(judgements, group, grouped_by, generator)
    told = _counted(start("heads", (len(parts) + 1) * settings.steps))
    held_out = _cross_validate(judgements, found, group, parts, settings, generator, told)
    weights = bootstrap(group, settings.members, generator)
    heads = train_heads(found, judgements.rows, weights, settings, generator, told())
    about = {
        "features": name,
        "judgements": judgements.kind,
        "rows": len(judgements.rows),
        "images": len(judgements.images),
        "folds": len(parts),
        "held_out_by": grouped_by,
        "prompts": "folds" if judgements.prompts is not None else "none",
        "members": settings.members,
        "hidden": settings.hidden,
        "seed": seed,
        "pessimism": pessimism,
        "held_out": figures(held_out) | _at_random(held_out, judgements.at_random),
    }
    return Fit(_in_units(heads, judgements, found), held_out, about)


def _at_random(held_out: HeldOut, chosen: Tensor | None) -> dict[str, float]:
    """The accuracy on pairs that were drawn at random, where others were chosen for being hard."""
    if chosen is None or held_out.kind != "pairs" or bool(chosen.all()) or not bool(chosen.any()):
        return {}
    share, error = accuracy(held_out.take(chosen))
    return {"accuracy_at_random": share, "accuracy_at_random_se": error}


def _cross_validate(
    judgements: Judgements,
    found: Features,
    group: Tensor,
    parts: list[Tensor],
    settings: HeadSettings,
    generator: torch.Generator,
    told: Callable[[], Told],
) -> HeldOut:
    """Every row as heads see it that were trained on the other folds, at the end's own recipe."""
    rows = judgements.rows
    predicted, spread, fold = (torch.zeros(len(rows)) for _ in range(3))
    for number, held in enumerate(parts):
        inside = torch.ones(len(rows), dtype=torch.bool)
        inside[held] = False
        rest = rows.take(inside.nonzero()[:, 0])
        weights = bootstrap(group[inside], settings.members, generator)
        heads = train_heads(found, rest, weights, settings, generator, told())
        predicted[held], spread[held] = predictions(heads(found), rows.take(held))
        fold[held] = float(number)
    return HeldOut(judgements.kind, predicted, spread, rows.target, fold)


def _in_units(heads: Heads, judgements: Judgements, found: Features) -> Heads:
    """Scores as the user knows them.

    A comparison leaves a constant of each member open, so each is 0 on average over the images and
    the members part only where they order images differently. Ratings get their own unit back.
    """
    if judgements.kind == "pairs":
        return replace(heads, offset=heads.offset - heads(found).mean(1))
    scale = judgements.scale
    offset = heads.offset * scale + judgements.shift
    return replace(heads, direct=heads.direct * scale, slope=heads.slope * scale, offset=offset)


def _counted(advance: Callable[[int], None]) -> Callable[[], Told]:
    """Turns steps done, counted anew in each training, into steps more."""

    def anew() -> Told:
        before = 0

        def told(done: int) -> None:
            nonlocal before
            advance(done - before)
            before = done

        return told

    return anew
