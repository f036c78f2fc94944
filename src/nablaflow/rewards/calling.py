"""A call of a reward's code: it ends nothing but itself, and leaves the process as it found it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from nablaflow.errors import UserError


class RewardFailed(Exception):
    """A reward's code ended the program instead of giving scores."""


@contextmanager
def calling(name: str, timeout: float | None = None) -> Iterator[None]:
    """Around a call of a reward.

    Args:
        name: of the reward, for messages.
        timeout: seconds that it may take; None: as many as it likes.

    Raises:
        RewardFailed: it called ``sys.exit``.
        UserError: it took longer.
    """
    with left_as_it_was(f"reward {name!r}"), _time_limit(name, timeout):
        try:
            yield
        except SystemExit as error:
            raise RewardFailed(
                f"reward {name!r} called sys.exit({error.code!r}); a reward returns scores, or "
                "raises an error"
            ) from error


# --- what belongs to the whole process ------------------------------------------------------------

_GLOBAL: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether gradients are recorded": (torch.is_grad_enabled, torch.set_grad_enabled),
    "whether algorithms are deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "the precision of float32 products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
}
"""How each is read and set."""


@contextmanager
def left_as_it_was(who: str) -> Iterator[None]:
    """Put back what the code inside changes for the whole process, and name it once.

    Numbers that it draws from torch's global generator stay drawn; a seed that it sets does not
    stay set.
    """
    before = {what: read() for what, (read, _) in _GLOBAL.items()}
    seed, drawn = torch.initial_seed(), torch.get_rng_state()
    try:
        yield
    finally:
        for what, (read, put) in _GLOBAL.items():
            if read() != before[what]:
                put(before[what])
                _say(who, what)
        if torch.initial_seed() != seed:
            torch.manual_seed(seed)
            torch.set_rng_state(drawn)
            _say(who, "the seed of torch's global generator")


@cache
def _say(who: str, what: str) -> None:
    print(f"{who} changes {what}, which is put back after each call", file=sys.stderr)


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
