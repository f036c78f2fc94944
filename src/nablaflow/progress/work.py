"""Pieces of work that say how far they are, and the object that passes it on to what shows it.

Code that works takes a callable, `StartProgress`, and knows no more; the commands hand it
`Progress.start`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, runtime_checkable

Done = Callable[[int], None]
"""Told how many more are done."""

StartProgress = Callable[[str, int], Done]
"""``(what, total) -> told how many more are done``."""


def unseen(what: str, total: int) -> Callable[[int], None]:
    """For work that nobody looks at."""
    return lambda more: None


@runtime_checkable
class Display(Protocol):
    """Whatever shows work: bars, or lines."""

    def begin(self, work: Work) -> None: ...

    def change(self, work: Work) -> None: ...

    def end(self, work: Work) -> None: ...

    def say(self, line: str) -> None:
        """Show a line for people."""

    def close(self, *, stopped: bool) -> None:
        """The last call; ``stopped``: by an exception, Ctrl-C among them."""


@dataclass(eq=False)
class Work:
    """A piece of work.

    Attributes:
        what: is done, in a few words.
        total: how many there are to do.
        unit: of ``done`` and ``total``, where they are no counts.
        inner: it is part of another piece: its bar goes when it is done, and lines come only
            where it takes a while.
        note: figures to show beside it.
    """

    what: str
    total: int
    done: int = 0
    unit: str = ""
    inner: bool = False
    displays: Sequence[Display] = ()
    note: str = field(default="", init=False)
    ended: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for display in self.displays:
            display.begin(self)
        self._end_when_full()

    def __call__(self, more: int) -> None:
        """So many more are done."""
        self.reach(self.done + more)

    def reach(self, done: int, note: str = "") -> None:
        """So many are done in all."""
        if self.ended:
            return
        self.done, self.note = done, note
        for display in self.displays:
            display.change(self)
        self._end_when_full()

    def end(self) -> None:
        """There is no more to come, even where less than ``total`` was done."""
        if self.ended:
            return
        self.ended = True
        for display in self.displays:
            display.end(self)

    def _end_when_full(self) -> None:
        if self.done >= self.total:
            self.end()


class Progress:
    """What a command shows of its work, as a context.

    Args:
        displays: that are told of everything; without one nothing is shown.
    """

    def __init__(self, *displays: Display) -> None:
        self._displays = displays

    def start(
        self, what: str, total: int, *, done: int = 0, unit: str = "", inner: bool = False
    ) -> Work:
        """Show a piece of work; see `Work` for what the arguments mean."""
        return Work(what, total, done, unit, inner, self._displays)

    def say(self, line: str) -> None:
        """Show a line beside the work."""
        for display in self._displays:
            display.say(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for display in self._displays:
            display.close(stopped=kind is not None)
