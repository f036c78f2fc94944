"""How a command ends before its end: asked to, by code that it called, or unheard."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest
import typer

from nablaflow.commands.shared import guarded
from nablaflow.commands.streams import _Told


def ended(work: Callable[[], None]) -> int:
    with pytest.raises(typer.Exit) as found:
        guarded(work, debug=False)
    return found.value.exit_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_line(number: int, capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(number)
    assert ended(lambda: os.kill(os.getpid(), number)) == 130
    assert capsys.readouterr().err == "nablaflow: stopped\n"
    assert signal.getsignal(number) == before


def test_code_that_ends_the_program_is_no_success():
    with pytest.raises(RuntimeError, match=r"SystemExit\(0\)"):
        guarded(lambda: sys.exit(0), debug=False)


def test_what_nobody_reads_fails_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    told = _Told(os.fdopen(writing, "wb"), "ascii", errors="backslashreplace", line_buffering=True)
    print("é \ud800", file=told)
    told.flush()
    with pytest.raises(BrokenPipeError):
        told.detach().flush()
