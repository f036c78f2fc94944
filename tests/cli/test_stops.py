"""How a command ends before its end: asked to, by code that it called, or unheard."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from nablaflow.__main__ import main
from nablaflow.commands.shared import console, guarded
from nablaflow.commands.streams import _Told
from nablaflow.errors import UserError
from nablaflow.rewards.process import left_as_it_was
from nablaflow.runs.stopping import (
    Interrupted,
    stopped_at_once,
    stopped_by_signals,
    stopping,
)
from nablaflow.storage.files import write_whole


def ended(work: Callable[[], None]) -> int:
    with pytest.raises(typer.Exit) as found:
        guarded(work, debug=False)
    return found.value.exit_code


HEARD = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
"""As in a shell's foreground."""


@pytest.fixture(autouse=True)
def _handlers_put_back():
    before = {number: signal.getsignal(number) for number in HEARD}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HEARD)
def test_a_signal_ends_it_with_a_line(number: signal.Signals, capsys: pytest.CaptureFixture[str]):
    signal.signal(number, HEARD[number])
    assert ended(lambda: os.kill(os.getpid(), number)) == 130
    assert signal.getsignal(number) == HEARD[number]
    assert capsys.readouterr().err == "nablaflow: stopped\n"


def test_a_terminal_that_may_close_stays_unheard():
    """As under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asked: list[bool] = []
    for inside in (stopped_by_signals(), stopped_at_once(), stopping(asked)):
        with inside:
            os.kill(os.getpid(), signal.SIGHUP)
    assert asked == []
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_by_name_is_heard_in_the_background_too(number: signal.Signals):
    """A script's shell has what it starts with ``&`` ignore Ctrl-C."""
    signal.signal(number, signal.SIG_IGN)
    asked: list[bool] = []
    with stopping(asked):
        os.kill(os.getpid(), number)
    assert asked == [True]
    assert signal.getsignal(number) == signal.SIG_IGN


def test_the_second_one_does_not_wait_for_the_update():
    asked: list[bool] = []
    with stopping(asked):
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [True]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("inside", "end"), [(stopped_by_signals, KeyboardInterrupt), (stopped_at_once, Interrupted)]
)
def test_what_a_library_makes_of_one_is_not_told(inside: Any, end: type[BaseException]):
    def load() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise UserError("the weights cannot be loaded") from error

    with pytest.raises(end), inside():
        load()
    with pytest.raises(UserError), inside():
        raise UserError("a mistake without a signal")


def test_a_loop_that_goes_on_after_an_error_ends_with_ctrl_c():
    """As of a sweep in a notebook, whose next run would begin at once."""
    begun: list[int] = []

    def sweep() -> None:
        for beta in range(3):
            begun.append(beta)
            try:
                raise Interrupted("stopped after update 2")
            except Exception:
                continue

    with pytest.raises(KeyboardInterrupt, match="after update 2"):
        sweep()
    assert begun == [0]


@pytest.mark.parametrize("debug", [False, True])
def test_a_stopped_run_is_a_line_and_130_with_its_place_on_request(
    debug: bool, capsys: pytest.CaptureFixture[str]
):
    def work() -> None:
        raise Interrupted("stopped after update 2")

    with pytest.raises(typer.Exit) as found:
        guarded(work, debug=debug)
    assert found.value.exit_code == 130
    told = capsys.readouterr().err
    assert told.endswith("nablaflow: stopped after update 2\n")
    assert ("in work" in told) == debug


def test_one_while_a_reward_works_is_not_taken_for_its_doing(capsys: pytest.CaptureFixture[str]):
    asked: list[bool] = []
    with stopping(asked), left_as_it_was("reward 'mine'"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [True]
    assert capsys.readouterr().err == ""


def test_a_folder_that_takes_no_file_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As /proc is one, or one that was removed meanwhile."""

    def work() -> None:
        write_whole(tmp_path / "gone" / "reward.png", b"")

    assert ended(work) == 2
    assert "gone" in capsys.readouterr().err


def test_a_file_that_its_server_has_no_more_is_a_line(capsys: pytest.CaptureFixture[str]):
    def work() -> None:
        raise OSError(errno.ESTALE, "Stale file handle", "run/metrics.jsonl")

    assert ended(work) == 2
    assert "run/metrics.jsonl: Stale file handle" in " ".join(capsys.readouterr().err.split())


def test_code_that_ends_the_program_is_no_success():
    with pytest.raises(RuntimeError, match=r"SystemExit\(0\)"):
        guarded(lambda: sys.exit(0), debug=False)


def test_one_before_a_command_hears_them_itself_is_no_codes_end(monkeypatch: pytest.MonkeyPatch):
    """`nablaflow.__main__` has said its line by then, and ends with its status."""

    def stopped() -> None:
        sys.exit(130)

    monkeypatch.setattr("nablaflow.runs.stopping.stopped_by_signals", stopped)
    with pytest.raises(SystemExit) as found:
        guarded(lambda: None, debug=False)
    assert found.value.code == 130


def test_what_nobody_reads_fails_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    told = _Told(os.fdopen(writing, "wb"), "ascii", errors="backslashreplace", line_buffering=True)
    print("é \ud800", file=told)
    told.flush()
    with pytest.raises(BrokenPipeError):
        told.detach().flush()


def test_a_table_that_nobody_reads_is_an_error_of_the_pipe(monkeypatch: pytest.MonkeyPatch):
    """As with ``nablaflow eval … | head -1``: rich would end the program, as a user's code may."""
    reading, writing = os.pipe()
    os.close(reading)
    nobody = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", nobody)
    with pytest.raises(BrokenPipeError):
        console().print("a table")
    os.dup2(os.open(os.devnull, os.O_WRONLY), nobody.fileno())  # for what is left in it
    nobody.close()


@pytest.mark.parametrize("number", HEARD)
def test_one_while_it_loads_is_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
):
    class Stopped:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "nablaflow.cli":
                os.kill(os.getpid(), number)

    signal.signal(number, HEARD[number])
    monkeypatch.delitem(sys.modules, "nablaflow.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Stopped(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capfd.readouterr().err == "nablaflow: stopped\n"
