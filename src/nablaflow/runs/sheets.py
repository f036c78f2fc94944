"""Sheets of the policy's samples during training, from the same noise each time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nablaflow.evaluation.bank import sample_states
from nablaflow.memory import in_parts
from nablaflow.report.pictures import grid, save_picture
from nablaflow.runs.setup import Parts
from nablaflow.storage.run_folder import SAMPLES
from nablaflow.training.processes import by_main, from_main

SHEET = 16  # images on one


@torch.no_grad()
def write_sheet(parts: Parts, folder: Path) -> None:
    """Samples of the policy now, from the same noise each time; every process must call it."""
    model, batch = parts.model, parts.config.evaluation.batch
    states = sample_states(
        model,
        parts.prompts,
        SHEET,
        seed=0,
        batch=batch,
        purpose="sheet",
        on_progress=lambda done: None,
    )
    by_main(parts.accelerator, lambda: _save(parts, folder, states))


def _save(parts: Parts, folder: Path, states: Tensor) -> None:
    model, batch = parts.model, parts.config.evaluation.batch
    images = in_parts(
        lambda rows: model.decode(states[rows].to(model.device)).cpu(),
        SHEET,
        batch,
        "evaluation.batch",
    )
    (folder / SAMPLES).mkdir(exist_ok=True)
    save_picture(grid(torch.cat(list(images)), columns=4), _sheet(parts, folder))


def _sheet(parts: Parts, folder: Path) -> Path:
    return folder / SAMPLES / f"step-{parts.trainer.update:06d}.png"


def write_missing_sheet(parts: Parts, folder: Path) -> None:
    """The one that a crash came before: its checkpoint was there already."""
    due = parts.trainer.update % parts.config.training.sample_every == 0
    if from_main(due and not _sheet(parts, folder).exists()):
        write_sheet(parts, folder)
