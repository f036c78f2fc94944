"""A process that waits for the others of its launch is ended by a signal, as any other is."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch.distributed import FileStore

from nablaflow.config.settings import TrainingSettings
from nablaflow.runs import meeting, waiting
from nablaflow.runs.accelerator import fresh_accelerator, make_accelerator
from nablaflow.runs.ending import ending_together
from nablaflow.runs.stopping import STOPS, Interrupted, Stop, stopped_by_signals, stopping
from nablaflow.runs.waiting import heard_while_waiting, waits_for_others
from tests.faults.processes import in_a_process
from tests.support.forked import place

LONG = 60
"""Seconds after which the system ends a process that hears nothing."""


def ended(numbers: Sequence[int], wait: Callable[[], None], said: Path) -> int:
    """Exit status of a process that is sent signals when it has connected to a port of ours."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest has its own
            signal.alarm(LONG)
            os.environ.update(place(1, 2, server.getsockname()[1]))
            waiting = os.getpid()
            if os.fork() == 0:
                server.accept()  # the other is inside torch now
                for number in numbers:
                    os.kill(waiting, number)
                os._exit(0)
            wait()

        return in_a_process(work, said)


def meet() -> None:
    """What answers is no process of the launch, and says nothing."""
    with fresh_accelerator():
        make_accelerator(TrainingSettings(device="cpu"), Path("run"))


def begin() -> None:
    with stopped_by_signals():
        meet()


def train() -> None:
    with stopping([]):
        meet()


@pytest.mark.parametrize(
    ("numbers", "wait"),
    [*(([number], begin) for number in STOPS), (STOPS[:1], meet), (STOPS[:2], train)],
)
def test_one_that_waits_is_ended(
    numbers: Sequence[int], wait: Callable[[], None], tmp_path: Path
) -> None:
    said = tmp_path / "said"
    assert ended(numbers, wait, said) == 130, said.read_text()
    assert said.read_text().count("nablaflow: ") == said.read_text().count(": stopped\n") == 1


def test_the_others_have_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits inside torch when the signal comes, after all have met."""
    store = FileStore(str(tmp_path / "store"), 2)
    monkeypatch.setattr(meeting, "_met", [store])
    monkeypatch.setattr(waiting, "waits_for_others", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    def work() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LONG)
        with stopped_by_signals(), heard_while_waiting():
            os.write(signal.set_wakeup_fd(-1), bytes([signal.SIGTERM]))
            threading.Event().wait()

    assert in_a_process(work, tmp_path / "said") == 130
    monkeypatch.setenv("RANK", "0")
    lost = RuntimeError("[gloo] Connection closed by peer")
    told = "process 1 of this launch ended: stopped"
    with pytest.raises(Interrupted, match=told), ending_together():
        raise lost


def test_the_first_while_it_trains_only_asks() -> None:
    stop = Stop([], 1)
    assert [stop.arrives() for _ in range(3)] == [False, True, True]


def test_what_waits_for_nobody_is_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not waits_for_others()
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(), heard_while_waiting():
        signal.raise_signal(signal.SIGTERM)
    assert signal.set_wakeup_fd(-1) == -1
