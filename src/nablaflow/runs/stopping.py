"""How a run stops before its end: Ctrl-C, SIGTERM, a full disk."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run stopped between two updates, with a checkpoint."""


@contextmanager
def stopping(asked: list[bool]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a stop after the update; the second stops at once."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        asked.append(True)
        restore()

    try:
        for number in signals:
            signal.signal(number, ask)
    except ValueError:  # not the main thread, where signals do not arrive anyway
        yield
        return
    try:
        yield
    finally:
        restore()


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM is what Ctrl-C is, so that what was begun is put away; unless it is ignored."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Ctrl-C or SIGTERM while a trained run is measured: nothing is lost but the figures so far."""

    def stop(number: int, frame: Any) -> None:
        raise Interrupted("stopped while the run was measured; it is trained, go on with --resume")

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def disk_full_is_the_users(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        from nablaflow.storage.checkpoint import list_checkpoints  # loads torch

        found = list_checkpoints(folder)
        left = f"{found[-1].name} is whole" if found else "there is no checkpoint yet"
        raise UserError(
            f"output_dir: cannot write {error.filename or folder} ({error.strerror}); {left}. Free "
            "some space and run again with --resume"
        ) from error
