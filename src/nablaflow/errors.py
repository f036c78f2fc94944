"""What is raised when the user can mend it; everything else is a fault and keeps its traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


class UserError(Exception):
    """A mistake in the user's input: one line that names the field or file and the remedy."""


class ExportError(Exception):
    """What was written does not give the policy's image in a stock pipeline; it was removed."""


class TrainingStopped(Exception):
    """Training cannot go on: a figure is not finite, no memory is left. What was saved is whole."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The closest of ``choices`` as a hint, or the list of them.

    >>> nearest("warmt", ["warmth", "contrast"])
    'did you mean warmth?'
    """
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"


def show(value: Any) -> str:
    """A value as the user wrote it, short enough for one line."""
    text = "null" if value is None else one_line(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(text: str) -> str:
    """A text without its line breaks, whatever a user's values held."""
    return " ".join(text.split())


def printable(text: str) -> str:
    r"""A text on one line, without what a terminal would take for a command.

    >>> printable("\x1b[31mred\n")
    '[31mred'
    """
    return one_line("".join(c if c.isprintable() else " " for c in text))


def installing(extra: str) -> str:
    """How an extra is had: the package is on no index, where another's may be of its name."""
    return f"pip install '.[{extra}]' in the checkout"


# --- what the command line and Python each call an option -----------------------------------------

_SWITCHES = ("average", "overwrite", "resume", "trusted")
_RENAMED = {
    "ema": "average",
    "format": "form",
    "held-out": "held_out",
    "method": "methods",
    "trust-run": "trusted",
}
ARGUMENTS = {
    **_RENAMED,
    **{
        name: name
        for name in (
            *("beta", "checkpoint", "dtype", "features", "height", "metrics", "minutes", "n"),
            *("out", "overwrite", "prompts", "resume", "reward", "sampler", "seed", "seeds"),
            *("strength", "width"),
        )
    },
}
"""By an option's name without its dashes: the argument of `nablaflow.api` and `Run`."""


def as_arguments(text: str) -> str:
    """A message with arguments of Python in place of the command line's options.

    >>> as_arguments("output_dir: runs/x is not empty; use --resume, or --n 64")
    'output_dir: runs/x is not empty; use resume=True, or n=64'
    """

    def argument(match: re.Match[str]) -> str:
        name = ARGUMENTS.get(match["name"])
        if name is None:  # of another program, such as torchrun
            return match[0]
        if name in _SWITCHES:
            return f"{name}=True{match['rest']}"
        number = match["rest"].strip()
        return f"{name}={number}" if number else name

    option = r"(?<![\w/-])--(?P<name>[a-z][a-z-]*[a-z]|n)\b(?P<rest>(?: \d+)?)"
    return re.sub(option, argument, text)


_IN_PYTHON: ContextVar[bool] = ContextVar("in_python", default=False)


def as_told(text: str) -> str:
    """A note for the user, in the words of whoever called: the command line's, or Python's."""
    return as_arguments(text) if _IN_PYTHON.get() else text


def in_python(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Have the messages of what a function raises, and its notes, name its arguments."""

    @wraps(function)
    def told(*args: Given.args, **named: Given.kwargs) -> Returned:
        token = _IN_PYTHON.set(True)
        try:
            return function(*args, **named)
        except (UserError, ExportError, TrainingStopped, KeyboardInterrupt) as error:
            error.args = tuple(
                as_arguments(part) if isinstance(part, str) else part for part in error.args
            )
            raise
        finally:
            _IN_PYTHON.reset(token)

    return told
