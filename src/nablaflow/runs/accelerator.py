"""The device, the precision and the processes of a run, as accelerate has them."""

from __future__ import annotations

import importlib.util
import os
import threading
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
from nablaflow.devices import best_device
from nablaflow.errors import UserError
from nablaflow.memory import keep_freed_memory
from nablaflow.runs.ending import ending_together
from nablaflow.runs.launch import PRECISIONS, Launch
from nablaflow.runs.meeting import meeting, meeting_place
from nablaflow.runs.waiting import heard_while_waiting

# The others wait while the main process saves the policy and compares its image with the stock
# pipeline's, or while one of them writes its share of a slow reward's scores.
PATIENCE = timedelta(hours=2)
_UNDER_WAY = threading.Lock()


@contextmanager
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its device and precision for the process; the next run chooses anew.

    An error of one process ends them all, see `ending_together`.

    Raises:
        UserError: a run is under way, in another thread or around this call.
    """
    if not _UNDER_WAY.acquire(blocking=False):
        raise UserError(
            "a run is under way in this process, which has room for one: let it end, or begin the "
            "other in a process of its own"
        )
    try:
        with heard_while_waiting(), ending_together():
            yield
    finally:
        try:
            _forget()
        finally:
            _UNDER_WAY.release()


@contextmanager
def trackers_of(accelerator: Accelerator) -> Iterator[None]:
    """Its trackers are closed at the end, after an error too.

    One that is left open goes on in its thread, and some would be told of the program's next run.
    """
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _forget() -> None:
    if PartialState._shared_state.get("num_processes", 1) > 1:
        # A thread of gloo may want Python's lock for its last tensors, while the destructor of
        # the group waits for that thread and has the lock.
        time.sleep(0.2)
    AcceleratorState._reset_state(reset_partial_state=True)


def make_accelerator(training: TrainingSettings, run: Path) -> Accelerator:
    """The accelerator of the run, on the device and in the precision asked for, or an error.

    Raises:
        UserError: there is no such device, or the launch is none that a run can be part of.
    """
    device, launch = training.device, Launch.read(os.environ, training)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(f"training.device: there is no {device} here; use auto or cpu")
    trackers: Any = list(training.trackers)
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"training.trackers: {name} is not installed; pip install {name}")
    best = best_device() if device == "auto" else torch.device(device)
    if training.precision == "fp16" and best.type == "cpu":
        raise UserError("training.precision: fp16 needs a GPU; use float32, or bf16")
    launch.check_devices(best)
    accelerator = _accelerator(training, best, run, trackers, launch)
    launch.check_found(accelerator.num_processes)
    if device not in ("auto", accelerator.device.type):
        raise UserError(f"training.device: accelerate chose {accelerator.device.type}; use auto")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def _accelerator(
    training: TrainingSettings, device: torch.device, run: Path, trackers: Any, launch: Launch
) -> Accelerator:
    """Where there are several processes, they have met when it is there."""
    place = InitProcessGroupKwargs(init_method=meeting_place(launch.restarts), timeout=PATIENCE)
    try:
        with meeting():
            return Accelerator(
                mixed_precision=PRECISIONS[training.precision],
                # Said also where there is nothing else, or accelerate connects no processes there.
                cpu=device.type == "cpu",
                log_with=trackers or None,  # for an empty list accelerate would warn
                project_config=ProjectConfiguration(str(run), logging_dir=str(run / "logs")),
                kwargs_handlers=[place],
            )
    except ValueError as error:
        reason = str(error).splitlines()[0]
        of = "training.precision" if "precision" in reason else "launch"
        raise UserError(f"{of}: {reason}") from error
