"""A process of several that waits for the others hears signals as well.

Python's handlers run between two lines of Python, and who waits for others, at the meeting place or
for what one of them does alone, is inside torch for as long as they take. The system's own note of
a signal, which `signal.set_wakeup_fd` asks for, arrives there too; a thread reads it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nablaflow.runs.ending import tell
from nablaflow.runs.meeting import have_met
from nablaflow.runs.stopping import STOPS, Stop

_TORCH = "torch.distributed"
_BY_DEFAULT = signal.default_int_handler
_OVER = bytes([0])  # the number of no signal


@contextmanager
def heard_while_waiting() -> Iterator[None]:
    """`STOPS` that end what is under way do so where a process waits for others, too.

    One that only asks for a stop after the update does no more. One process waits for nobody, and
    is left alone; so is a handler of the user's own.
    """
    alone = os.environ.get("WORLD_SIZE") in (None, "", "1")
    if alone or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watch = threading.Thread(target=_watch, args=(reader,), daemon=True)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        watch.start()
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, _OVER)
        watch.join()
        os.close(writer)
        os.close(reader)


def _watch(reader: int) -> None:
    told = False
    while (number := os.read(reader, 1)) != _OVER:
        if number[0] in STOPS and _ends(signal.getsignal(number[0])) and waits_for_others():
            if told or not have_met():
                _end()
            told = True  # the next signal does not wait for whoever keeps the words
            threading.Thread(target=_end_by_words, daemon=True).start()


def _end_by_words() -> None:
    """The others are told that this one was stopped, as they are where Python hears of it."""
    tell(KeyboardInterrupt())
    _end()


def _ends(handler: Any) -> bool:
    """Whether a signal that this hears now is to end the process."""
    return handler.arrives() if isinstance(handler, Stop) else handler is _BY_DEFAULT


def waits_for_others() -> bool:
    """Whether what the main thread is in the middle of is torch's own, between processes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    name = "" if frame is None else frame.f_globals.get("__name__", "")
    return f"{name}.".startswith(f"{_TORCH}.")


def _end() -> None:
    """No line of Python can end it but one of this thread."""
    with suppress(OSError):  # nobody hears
        os.write(2, b"nablaflow: stopped\n")
    os._exit(130)
