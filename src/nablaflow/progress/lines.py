"""Work as lines of text, for a file or a pipe: few where it is quick, never long without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nablaflow.progress.work import Work

FIRST, LONGEST = 2.0, 30.0  # seconds from the start to a line, and between two lines at most


@dataclass
class _Pace:
    """When the next line about a piece of work is due.

    Attributes:
        began: seconds on the clock.
        before: of the work, done by then.
    """

    began: float
    before: int
    due: float
    gap: float = FIRST
    told: bool = False

    def is_due(self, now: float) -> bool:
        if now < self.due:
            return False
        self.gap = min(2 * self.gap, LONGEST)
        self.due = now + self.gap
        return True


class Lines:
    """A line when work begins, then at growing intervals, and when it ends.

    Every line begins with the time since the first: hours, minutes and seconds.

    Args:
        write: puts a line, without its end, where it belongs, at once.
        clock: in seconds.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._opened = clock()
        self._paces: dict[Work, _Pace] = {}

    def begin(self, work: Work) -> None:
        now = self._clock()
        pace = self._paces[work] = _Pace(now, work.done, now + FIRST)
        if not work.inner and work.done < work.total:
            self._tell(work, pace)

    def change(self, work: Work) -> None:
        now, pace = self._clock(), self._paces[work]
        if work.done < work.total and pace.is_due(now):
            self._tell(work, pace, f"{duration(_left(work, pace, now))} left")

    def end(self, work: Work) -> None:
        pace = self._paces.pop(work)
        if pace.told:
            self._tell(work, pace, f"took {duration(self._clock() - pace.began)}")

    def say(self, line: str) -> None:
        elapsed = int(self._clock() - self._opened)
        hours, rest = divmod(elapsed, 3600)
        self._write(f"{hours}:{rest // 60:02}:{rest % 60:02} {line}")

    def close(self, *, stopped: bool) -> None:
        for work, pace in self._paces.items():
            if stopped and pace.told:
                self._tell(work, pace, "stopped")

    def _tell(self, work: Work, pace: _Pace, time: str = "") -> None:
        pace.told = True
        unit = f" {work.unit}" if work.unit else ""
        parts = (f"{work.done}/{work.total}{unit}", time, work.note)
        self.say(f"{work.what}: {', '.join(part for part in parts if part)}")


def _left(work: Work, pace: _Pace, now: float) -> float:
    """Seconds, by the mean pace so far."""
    done = max(work.done - pace.before, 1)
    return (now - pace.began) / done * (work.total - work.done)


def duration(seconds: float) -> str:
    """``45 s``, ``7 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
