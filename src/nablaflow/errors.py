"""What is raised when the user can mend it; everything else is a fault and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


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
