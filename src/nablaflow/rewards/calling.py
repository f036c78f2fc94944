"""A call of a reward's code: it ends nothing but itself, and leaves the process as it found it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from nablaflow.errors import UserError
from nablaflow.rewards.process import left_as_it_was, surroundings_left


class RewardFailed(Exception):
    """A reward's code ended the program, or met an error that a command would take for its own."""


@contextmanager
def calling(name: str, timeout: float | None = None, *, foreign: bool = True) -> Iterator[None]:
    """Around a call of a reward.

    Args:
        name: of the reward, for messages.
        timeout: seconds that it may take; None: as many as it likes.
        foreign: whether the code is the user's own; a built-in reward loads libraries in its first
            call, and says itself what is wrong with a file.

    Raises:
        RewardFailed: it called ``sys.exit``, or failed by what a disk or a path does to it.
        UserError: it took longer.
    """
    who = f"reward {name!r}"
    outside = surroundings_left(who) if foreign else nullcontext()
    with left_as_it_was(who), outside, _time_limit(name, timeout):
        try:
            yield
        except SystemExit as error:
            raise RewardFailed(
                f"{who} called sys.exit({error.code!r}); a reward returns scores, or raises an "
                "error"
            ) from error
        except (OSError, GeneratorExit) as error:
            if not foreign:
                raise
            raise RewardFailed(f"{who} raised {type(error).__name__}: {error}") from error


@contextmanager
def _time_limit(name: str, seconds: float | None) -> Iterator[None]:
    if seconds is None:
        yield
        return

    def late(number: int, frame: Any) -> None:
        raise UserError(
            f"reward {name!r} gave no scores in {seconds:g} s; mend it, or raise "
            "training.reward_timeout"
        )

    try:
        before = signal.signal(signal.SIGALRM, late)
    except ValueError:
        raise UserError(
            "training.reward_timeout: only the main thread can end a call; leave it out"
        ) from None
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
