"""Images of a run at each checkpoint and at some strengths of its adapter, from the same noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.evaluation.bank import sample_states, spread
from nablaflow.evaluation.policy_state import put_policy
from nablaflow.features import pooled_pixels
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import Done, show
from nablaflow.prompts.sets import load_prompts
from nablaflow.report.pictures import save_picture, to_picture
from nablaflow.rewards import NamedReward, load
from nablaflow.runs.checks import check_count, check_decodes, image_bytes
from nablaflow.runs.policy import load_policy
from nablaflow.runs.sample import BATCH, image_name
from nablaflow.runs.trust import THE_MODEL
from nablaflow.storage import checksums
from nablaflow.storage.checkpoint import load_policy as read_policy
from nablaflow.storage.checkpoint import load_trained
from nablaflow.storage.files import write_whole
from nablaflow.storage.gallery import GALLERY, REFERENCE
from nablaflow.storage.lock import alone
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.run_folder import place_fault
from nablaflow.storage.whole import steady, whole_checkpoints
from nablaflow.typing import Batch, Images

_IMAGES = "[0-9][0-9][0-9][0-9]*-*.png"  # as `image_name` calls them
STRENGTHS = (0.25, 0.5, 0.75, 1.25, 1.5)


@dataclass(frozen=True)
class Position:
    """A policy between the reference and what was trained.

    Attributes:
        name: of the folder with its images.
        strength: of the checkpoint's adapter; 0 is the reference, 1 the policy.
        checkpoint: that it is of; None: the reference.
        policy: the parameters there.
    """

    name: str
    strength: float
    checkpoint: Path | None = None
    policy: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Drawer:
    """A run's model, and what it draws at every position.

    Attributes:
        name: of the model, in the run's configuration.
        seed: of the noise.
    """

    model: PipelineModel
    name: str
    reward: NamedReward
    prompts: list[str]
    n: int
    seed: int

    @property
    def texts(self) -> list[str]:
        """The prompt of each image."""
        return [self.prompts[which] for which in spread(self.n, len(self.prompts)).tolist()]

    def draw_all(
        self, positions: Iterable[Position], out: Path, told: Done
    ) -> list[dict[str, object]]:
        """Write the images of positions, the reference's first; returns what each scores."""
        rows, reference = [], None
        for position in positions:
            images = self._images(position, told)
            seen = pooled_pixels(images)
            reference = seen if reference is None else reference
            _write_images(images, self.texts, out / position.name)
            distances = (seen - reference).norm(dim=1).tolist()
            rows.append(_row(position, self._rewards(images).tolist(), distances))
        return rows

    @torch.no_grad()
    def _images(self, position: Position, told: Done) -> Images:
        model = self.model
        if position.checkpoint is not None and position.policy is not None:
            put_policy(model.network, position.policy, position.checkpoint, self.name)
            model.adapter.scale(position.strength)
        with nullcontext() if position.checkpoint else model.reference():
            states = sample_states(
                model,
                self.prompts,
                self.n,
                seed=self.seed,
                batch=BATCH,
                purpose="sample",
                on_progress=told,
            )
        parts = states.to(model.device).split(BATCH)
        return torch.cat([model.decode(part).float().cpu() for part in parts])

    @torch.no_grad()
    def _rewards(self, images: Images) -> Batch:
        pairs = zip(images.split(BATCH), _parts(self.texts), strict=True)
        return torch.cat([self.reward(part, texts).float().cpu() for part, texts in pairs])


def write_gallery(
    run: Path,
    out: Path,
    n: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    overwrite: bool = False,
    trusted: bool = False,
    settings: Sequence[str] = (),
) -> Path:
    """Write ``n`` images of each position to a folder of its own, and what they score.

    Image i has the same prompt and the same noise everywhere, so what differs is the training.

    Args:
        strengths: of the last checkpoint, besides 0 and 1.
        trusted: whether the user's word is given for what the run asks for.
        settings: ``model=…``, ``model_lora=…``, where the run's own are now.

    Returns:
        The table of rewards, and of distances from the reference's image of the same noise, in
        pooled pixels.

    Raises:
        UserError: the run has no checkpoint; there is a gallery already, or other files are where
            its images would be.
    """
    table = out / GALLERY
    _check_new(table, overwrite=overwrite)
    fault = place_fault(out)
    if fault is not None:
        raise UserError(f"--out: {fault}; give another folder")
    drawer = _drawer(run, n, seed, settings, trusted=trusted)
    with steady(run) as place, show() as progress:
        checkpoints = [path.name for path in list_checkpoints(place)]
        names = [REFERENCE, *checkpoints, *map(_at_strength, strengths)]
        _check_apart(names, out)
        told = progress.start("sample", n * len(names))
        with alone(out):
            _check_new(table, overwrite=overwrite)  # another may have been written meanwhile
            table.unlink(missing_ok=True)  # where it is, the images are those that it is of
            rows = drawer.draw_all(_positions(place, strengths), out, told)
            content = {"run": str(run), "seed": seed, "prompts": drawer.texts, "positions": rows}
            write_whole(table, checksums.sealed(content))
    return table


def _check_new(table: Path, *, overwrite: bool) -> None:
    if table.exists() and not overwrite:
        raise UserError(
            f"--out: {table.parent} holds a gallery already; use --overwrite or another folder"
        )


def _drawer(run: Path, n: int, seed: int, settings: Sequence[str], *, trusted: bool) -> Drawer:
    parts = (*THE_MODEL, "prompts", "reward")
    model, config, _ = load_policy(run, parts, trusted=trusted, settings=settings)
    check_decodes(model)
    check_count("--n", n, 2 * image_bytes(model))
    prompts = load_prompts(config.prompts, Path(), config.seed)
    return Drawer(model, config.model, load(config.reward), prompts, n, seed)


def _positions(run: Path, strengths: Sequence[float]) -> Iterator[Position]:
    """The reference comes first: it is what the others are held against.

    A checkpoint is read when its turn comes, once; one before the last is as it was trained.
    """
    last = Position(REFERENCE, 0.0)
    yield last
    for folder, state in whole_checkpoints(run, read_policy, load_trained):
        last = Position(folder.name, 1.0, folder, state)
        yield last
    for strength in strengths:
        yield replace(last, name=_at_strength(strength), strength=strength)


def _at_strength(strength: float) -> str:
    """Name of the folder."""
    return f"strength-{strength:g}"


def _check_apart(names: Sequence[str], out: Path) -> None:
    """A folder of images replaces nothing but images of an earlier gallery."""
    for folder in (out / name for name in names):
        own = set(folder.glob(_IMAGES)) if folder.is_dir() and not folder.is_symlink() else set()
        others = {folder} if folder.is_symlink() or folder.is_file() else set()
        others |= set(folder.iterdir()) - own if folder.is_dir() else set()
        if others:
            raise UserError(f"--out: {min(others)} is no image of a gallery; use another folder")


def _row(position: Position, rewards: list[float], distances: list[float]) -> dict[str, object]:
    return {
        "folder": position.name,
        "checkpoint": position.checkpoint.name if position.checkpoint else REFERENCE,
        "strength": position.strength,
        "rewards": [value if math.isfinite(value) else None for value in rewards],
        "distances": distances,
    }


def _parts(texts: list[str]) -> list[list[str]]:
    return [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]


def _write_images(images: Images, texts: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(_IMAGES):
        old.unlink()
    for index, (image, prompt) in enumerate(zip(images, texts, strict=True)):
        save_picture(to_picture(image), folder / image_name(index, prompt))
