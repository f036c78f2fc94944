"""Commands that the page starts: what it runs is the command line, and it shows it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from nablaflow.errors import UserError
from nablaflow.studio.commands import typed

PROGRAM = ["-m", "nablaflow"]
SHOWN = 4000  # characters of a log's end


class Job:
    """One command, running or ended.

    Attributes:
        command: as a user would type it.
        leads_to: the folder that it writes.
    """

    def __init__(self, arguments: Sequence[str], log: Path, leads_to: Path) -> None:
        self.command, self.leads_to = typed(arguments), leads_to
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
        with self._log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4 * SHOWN))
            text = file.read().decode(errors="replace")
        lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
        return "\n".join(lines)[-SHOWN:]

    @property
    def ended(self) -> str:
        """How it ended, in words; nothing while it runs."""
        status = self.status
        if status is None:
            return ""
        if status < 0:
            return f"died: {signal.Signals(-status).name}"
        return {0: "done", 130: "stopped"}.get(status, f"failed with status {status}")

    def stop(self) -> None:
        """As Ctrl-C does, which a page in the background and all it starts may have to ignore.

        A training ends between two updates, with a checkpoint.
        """
        if self.status is None:
            self._process.terminate()

    def wait(self) -> int:
        return self._process.wait()


class Jobs:
    """The commands of one page, one at a time; their logs go when the page ends."""

    def __init__(self) -> None:
        self._logs = tempfile.TemporaryDirectory(prefix="nablaflow-studio-")
        self._all: list[Job] = []
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[str], leads_to: Path) -> Job:
        """Run a command in the background.

        Raises:
            UserError: one is still running.
        """
        with self._lock:
            if self.running is not None:
                raise UserError(f"{self.running.command} is still running; wait for it, or stop it")
            log = Path(self._logs.name) / f"{len(self._all)}.txt"
            self._all.append(Job(arguments, log, leads_to))
            return self._all[-1]

    @property
    def commands(self) -> list[str]:
        """All that were started, oldest first."""
        return [job.command for job in self._all]

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
