"""Bars on a terminal, lines elsewhere; the log has the lines whatever the console shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nablaflow.progress import show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _a_plain_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def shown_on(file: io.StringIO) -> tuple[str, list[str]]:
    logged: list[str] = []
    with show(Console(file=file, width=100), logged.append) as progress:
        work = progress.start("train [bold]", 2)
        work.reach(1, "reward 0.5")
        progress.say("[red] is no markup here")
        progress.start("guard", 1, inner=True)(1)
        work.reach(2, "reward 0.6")
    return file.getvalue(), logged


def test_a_file_gets_plain_lines():
    text, logged = shown_on(io.StringIO())
    assert text.splitlines() == logged
    assert logged[0] == "0:00:00 train [bold]: 0/2"
    assert logged[1] == "0:00:00 [red] is no markup here"
    assert logged[-1] == "0:00:00 train [bold]: 2/2, took 0 s, reward 0.6"
    assert "\x1b" not in text


def test_a_terminal_gets_bars_and_the_log_lines():
    text, logged = shown_on(Terminal())
    assert "\x1b[" in text, "a bar moves the cursor"
    assert "train [bold]: reward 0.6" in text
    assert "[red] is no markup here" in text
    assert logged[-1].endswith("train [bold]: 2/2, took 0 s, reward 0.6")
    final = text.rsplit("\x1b[2K", 1)[-1]
    assert "guard" not in final, "the bar of a part goes when it is done"


def test_colours_that_are_forced_into_a_file_make_no_bars(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text, logged = shown_on(io.StringIO())
    assert text.splitlines() == logged


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    text, logged = shown_on(Terminal())
    assert text.splitlines() == logged


def test_without_work_nothing_is_shown():
    for file in (Terminal(), io.StringIO()):
        with show(Console(file=file)):
            pass
        assert file.getvalue() == ""


def test_a_long_line_is_one_line():
    file = io.StringIO()
    with show(Console(file=file, width=40)) as progress:
        progress.say("word " * 40)
    assert len(file.getvalue().splitlines()) == 1
