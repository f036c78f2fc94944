"""How a run stops before its end: Ctrl-C, SIGTERM, SIGHUP, a full disk."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError
from nablaflow.storage.manifest import list_checkpoints

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what ends a program, and a terminal that is closed."""
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""In the environment of what torchrun, or accelerate by it, has started."""


class Interrupted(KeyboardInterrupt):
    """One of `STOPS`: the run stopped between two updates, with a checkpoint.

    It is what Ctrl-C is in any program, so that a loop that goes on after an `Exception` ends too.
    """


class Stop:
    """A handler of `STOPS`: the first ones ask for a stop, the next one ends what is under way.

    Args:
        asked: one more for each that only asks.
        first: how many do.
    """

    def __init__(self, asked: list[bool], first: int) -> None:
        self.asked, self.first = asked, first
        self.arrived = 0  # by the system's word, which comes before Python hears of it
        self.ended = False

    def __call__(self, number: int, frame: Any) -> None:
        if len(self.asked) == self.first:
            self.ended = True
            raise KeyboardInterrupt
        self.asked.append(True)

    def arrives(self) -> bool:
        """Whether one that arrives now is to end what is under way."""
        self.arrived += 1
        return self.arrived > self.first


@contextmanager
def stopping(asked: list[bool]) -> Iterator[None]:
    """The first of `STOPS` asks for a stop after the update; the second stops at once.

    Under torchrun the third does: whoever ends all processes of a job, as Slurm does, ends it as
    well, and it passes on what its processes have been told already.
    """
    with _heard(Stop(asked, 2 if os.environ.get(LAUNCHED) else 1)):
        yield


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """All of `STOPS` are what Ctrl-C is, so that what was begun is put away."""
    with _ended_by(KeyboardInterrupt()):
        yield


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """`STOPS` while a trained run is measured: nothing is lost but the figures so far."""
    told = "stopped while the run was measured; it is trained, go on with --resume"
    with _ended_by(Interrupted(told)):
        yield


@contextmanager
def _ended_by(end: BaseException) -> Iterator[None]:
    """`STOPS` end what is inside, by this error whatever a library makes of it on the way.

    One that loads weights, say, takes any error for a damaged file, and its user for the culprit.
    """
    stop = Stop([], 0)
    with _heard(stop):
        try:
            yield
        except Interrupted:  # which says more
            raise
        except BaseException as error:
            if stop.ended:
                raise end from error
            raise


@contextmanager
def _heard(handler: Stop) -> Iterator[None]:
    """`STOPS` inside; a SIGHUP that is ignored, as under `nohup`, stays ignored.

    The others are heard even so: a shell's script has what it starts in the background ignore
    Ctrl-C, and whoever sends it one by name means it.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    found = {number: signal.getsignal(number) for number in STOPS}
    deaf = found[signal.SIGHUP] is signal.SIG_IGN
    before = {
        number: old
        for number, old in found.items()
        if old is not None and not (deaf and number == signal.SIGHUP)
    }
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def disk_full_is_the_users(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        found = list_checkpoints(folder)
        left = f"{found[-1].name} is whole" if found else "there is no checkpoint yet"
        raise UserError(
            f"output_dir: cannot write {error.filename or folder} ({error.strerror}); {left}. Free "
            "some space and run again with --resume"
        ) from error
