"""One resumable stage of pretraining: a step function, called ``steps`` times, with checkpoints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nablaflow.errors import UserError


@runtime_checkable
class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def take_step(
    loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel
) -> float:
    """Down the loss, by a gradient of norm 1 at most, and on with the average; its norm before."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    average.update_parameters(model)
    return norm.item()


def _save(path: Path, step: int, state: Mapping[str, Stateful], generator: torch.Generator) -> None:
    """Write beside the old file, then rename: an interrupted write leaves the old one whole."""
    content = {name: part.state_dict() for name, part in state.items()}
    partial = path.with_suffix(".partial")
    torch.save({"step": step, "generator": generator.get_state(), **content}, partial)
    os.replace(partial, path)


def _resume(path: Path, state: Mapping[str, Stateful], generator: torch.Generator) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True, map_location="cpu")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    generator.set_state(saved["generator"])
    return saved["step"]


def claim(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Note what is trained in ``folder`` under ``name``; what is there must be of the same.

    Raises:
        UserError: it is of others: its checkpoints and latents would be taken for these.
    """
    path = folder / f"{name}-settings.json"
    if not path.is_file():
        path.write_text(json.dumps(dict(settings), indent=2) + "\n")
    found = json.loads(path.read_text())
    changed = [key for key in settings if found.get(key) != settings[key]]
    if changed:
        raise UserError(
            f"--work {folder}: holds a training of {changed[0]} {found.get(changed[0])}, and not "
            f"{settings[changed[0]]}; name another folder"
        )


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
        console=Console(stderr=True),
    )


def run_stage(
    name: str,
    steps: int,
    step: Callable[[int], dict[str, float]],
    *,
    state: Mapping[str, Stateful],
    generator: torch.Generator,
    folder: Path,
    save_every: int = 250,
) -> None:
    """Call ``step(i)`` for i from where the last run stopped up to ``steps``.

    Args:
        step: does one update and returns what to log.
        state: what a resumed run needs, saved to ``folder/name.pt``.
        generator: the stage's only source of randomness; saved too.
        folder: also receives ``name.jsonl``, one line for every 25 steps.
    """
    path = folder / f"{name}.pt"
    start = _resume(path, state, generator)
    with (folder / f"{name}.jsonl").open("a") as log, progress_bar() as progress:
        task = progress.add_task(name, total=steps, completed=start, shown="")
        for index in range(start, steps):
            metrics = step(index)
            if index % 25 == 0:
                log.write(json.dumps({"step": index, **metrics}) + "\n")
                log.flush()
            shown = " ".join(f"{key} {value:.4g}" for key, value in metrics.items())
            progress.update(task, completed=index + 1, shown=shown)
            if (index + 1) % save_every == 0 or index + 1 == steps:
                _save(path, index + 1, state, generator)
