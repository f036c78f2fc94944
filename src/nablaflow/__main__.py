"""The commands `nablaflow` and `python -m nablaflow`; a signal while they load is one line too."""

import os
import signal
import sys
from contextlib import suppress
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _stop(number: int, frame: Any) -> None:
    _ignore()
    with suppress(OSError):  # nobody hears
        os.write(2, b"nablaflow: stopped\n")
    sys.exit(130)


def _ignore() -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


SPINS = "10000"
"""Turns that a thread waits awake: a fraction of a millisecond; libgomp's own are 300,000."""


def _share_processors() -> None:
    """Have a thread that waits long for others sleep, where the user has not said how they wait.

    By default it keeps its core busy, and where other programs want that core each waits for the
    other: beside four of them two threads take four times as long (docs/benchmarks.md). To be said
    before torch is loaded.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def main() -> None:
    """Entry point of both; commands hear signals themselves, as `nablaflow.runs.stopping` says."""
    _share_processors()
    for number in STOPS:
        kept = number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN  # nohup
        if not kept:
            signal.signal(number, _stop)
    try:
        from nablaflow.cli import main as begin  # loading its parser takes half a second

        begin()
    finally:
        _ignore()  # all is done, and Python puts itself away


if __name__ == "__main__":
    main()
