"""Standard streams that outlast a command, whatever becomes of their other ends."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


class _Told(io.TextIOWrapper):
    """What is told besides the result: where nobody can read it, the work goes on."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def steady_streams() -> None:
    """Have standard error fail nobody, and standard output refuse no character."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, and the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    nobody = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    sys.stdout = sys.stdout or nobody
    sys.stderr = sys.stderr or nobody  # without one, print would take standard output
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stderr.encoding
        sys.stderr = _Told(
            sys.stderr.detach(), encoding, errors="backslashreplace", line_buffering=True
        )
