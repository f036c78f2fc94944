"""What values settings can hold, whatever their names, and how a wrong one is shown."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError, one_line

MOST = 2**53  # what a float can count to
LARGEST = 3.4e38  # float32, in which everything is computed


def check_scalar(value: Any) -> None:
    """Refuse numbers and texts that a later step could not hold.

    Raises:
        ValueError: a number is not finite or too large; a text has no UTF-8, or holds a NUL.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    if isinstance(value, float) and abs(value) > LARGEST:
        raise ValueError(f"must be a number that float32 can hold, at most {LARGEST:g}")
    if isinstance(value, int) and abs(value) > MOST:
        raise ValueError(f"must be a number of at most {MOST}")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("holds the character NUL; leave it out")
    if isinstance(value, str) and (fault := _utf8_fault(value)):
        raise ValueError(fault)


def check_text(source: str, text: str) -> None:
    """Refuse a text that no file of UTF-8 could hold.

    Args:
        source: what a message calls it.

    Raises:
        UserError: it is such.
    """
    if fault := _utf8_fault(text):
        raise UserError(f"{source}: {fault}")


def _utf8_fault(text: str) -> str | None:
    """None: it has UTF-8. What Python could not decode, it leaves as halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        if encoding == "utf-8" or not _ESCAPED.search(text):
            return f"holds half a character ({text[:60]!a}); write it in UTF-8"
        return f"the locale's encoding is {encoding}, and this text is not; set LC_ALL=C.UTF-8"
    return None


_ESCAPED = re.compile("[\udc80-\udcff]")
"""A byte of the command line that the locale's encoding does not have."""


def check_path(value: Any) -> None:
    """Refuse a text that is too long for the name of a file.

    Raises:
        ValueError: it is.
    """
    if isinstance(value, str | Path) and is_too_long(str(value)):
        raise ValueError(f"{str(value)[:40]}… is too long for the name of a file")


def is_too_long(path: str) -> bool:
    """Whether no usual file system has room for such a path."""
    sizes = [len(part.encode(errors="replace")) for part in path.split("/")]
    return max(sizes) > 255 or sum(sizes) + len(sizes) > 4096


def is_number(value: Any) -> bool:
    """Whether a float can hold it: no truth value, no NaN, no infinity, no integer beyond."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def refusal(text: str) -> UserError:
    """One line, whatever the user's keys and values hold."""
    return UserError(one_line(text))
