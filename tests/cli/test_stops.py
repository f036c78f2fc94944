"""How a command ends before its end: asked to, by code that it called, or unheard."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest
import typer

from nablaflow.__main__ import main
from nablaflow.commands.shared import guarded
from nablaflow.commands.streams import _Told


def ended(work: Callable[[], None]) -> int:
    with pytest.raises(typer.Exit) as found:
        guarded(work, debug=False)
    return found.value.exit_code


HEARD = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
"""As in a shell's foreground; what it starts in the background may ignore them."""


@pytest.mark.parametrize("number", HEARD)
def test_a_signal_ends_it_with_a_line(number: signal.Signals, capsys: pytest.CaptureFixture[str]):
    before = signal.signal(number, HEARD[number])
    try:
        assert ended(lambda: os.kill(os.getpid(), number)) == 130
        assert signal.getsignal(number) == HEARD[number]
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "nablaflow: stopped\n"


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


def test_ctrl_c_while_it_loads_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys):
    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "nablaflow.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "nablaflow.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "nablaflow: stopped\n"
