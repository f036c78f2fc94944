"""Commands that the page starts: what it runs is the command line, and it shows it."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nablaflow.errors import UserError

PROGRAM = ["-m", "nablaflow"]
SHOWN = 4000  # characters of a log's end


class Job:
    """One command, running or ended.

    Attributes:
        command: as a user would type it.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.command = shlex.join(["nablaflow", *arguments])
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C in the terminal is the page's alone
            )

    @property
    def status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """The end of what it wrote."""
        text = self._log.read_bytes()[-4 * SHOWN :].decode(errors="replace")
        lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
        return "\n".join(lines)[-SHOWN:]

    def stop(self) -> None:
        """As Ctrl-C does: a training ends between two updates, with a checkpoint."""
        if self.status is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        return self._process.wait()


class Jobs:
    """The commands of one page, one at a time; their logs go when the page ends."""

    def __init__(self) -> None:
        self._logs = tempfile.TemporaryDirectory(prefix="nablaflow-studio-")
        self._all: list[Job] = []

    def start(self, arguments: Sequence[str]) -> Job:
        """Run a command in the background.

        Raises:
            UserError: one is still running.
        """
        if self.running is not None:
            raise UserError(f"{self.running.command} is still running; wait for it, or stop it")
        log = Path(self._logs.name) / f"{len(self._all)}.txt"
        self._all.append(Job(arguments, log))
        return self._all[-1]

    @property
    def last(self) -> Job | None:
        return self._all[-1] if self._all else None

    @property
    def running(self) -> Job | None:
        last = self.last
        return last if last is not None and last.status is None else None

    def close(self) -> None:
        """Stop what runs, and wait for its checkpoint."""
        running = self.running
        if running is not None:
            running.stop()
            running.wait()
        self._logs.cleanup()
