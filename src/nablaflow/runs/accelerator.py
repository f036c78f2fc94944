"""The device, the precision and the processes of a run, as accelerate has them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from nablaflow.config.settings import TrainingSettings
from nablaflow.errors import UserError
from nablaflow.memory import keep_freed_memory

# The others wait while the main process measures the run at its end.
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(hours=12))
MIXED_PRECISION = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


@contextmanager
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its device and precision for the process; the next run chooses anew."""
    try:
        yield
    finally:
        if PartialState._shared_state and PartialState().num_processes > 1:
            # A thread of gloo may want Python's lock for its last tensors, while the destructor of
            # the group, whose last owner is the run's DDP, waits for that thread and has the lock.
            time.sleep(0.2)
        AcceleratorState._reset_state(reset_partial_state=True)


def make_accelerator(training: TrainingSettings, run: Path) -> Accelerator:
    """The accelerator of the run, on the device and in the precision asked for, or an error."""
    device = training.device
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(f"training.device: there is no {device} here; use auto or cpu")
    trackers: Any = list(training.trackers)
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"training.trackers: {name} is not installed; pip install {name}")
    try:
        accelerator = Accelerator(
            mixed_precision=MIXED_PRECISION[training.precision],
            cpu=device == "cpu",
            log_with=trackers or None,  # for an empty list accelerate would warn
            project_config=ProjectConfiguration(str(run), logging_dir=str(run / "logs")),
            kwargs_handlers=[PATIENCE],
        )
    except ValueError as error:
        raise UserError(f"training.precision: {str(error).splitlines()[0]}") from error
    if device not in ("auto", accelerator.device.type):
        raise UserError(f"training.device: accelerate chose {accelerator.device.type}; use auto")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator
