"""What of a judge's address may be shown and stored: who may ask, and what follows the path, not.

A user name, a password and the values of a query are keys as often as not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

MASK = "***"
_WEB = ("http://", "https://")
_SCHEME = r"[a-z][a-z0-9+.-]*://|https?:/"  # one stroke is what a path makes of two
_ADDRESS = re.compile(rf"({_SCHEME})[^\s'\"]+", re.IGNORECASE)
_PARTS = re.compile(rf"({_SCHEME})?(.*)", re.IGNORECASE | re.DOTALL)


def masked_url(url: str) -> str:
    """An address without what may be secret in it.

    >>> masked_url("https://me:word@judge.org/score?model=a&key=b")
    'https://***@judge.org/score?***'
    """
    parts = _PARTS.fullmatch(url)
    assert parts is not None
    scheme, rest = parts[1] or "", parts[2]
    ends = [rest.index(c) for c in "/?#" if c in rest]
    place, path = (rest[: min(ends)], rest[min(ends) :]) if ends else (rest, "")
    if scheme and "@" in place:
        place = f"{MASK}@{place.rpartition('@')[2]}"
    for sign in "?#":
        head, found, _ = path.partition(sign)
        path = f"{head}{sign}{MASK}" if found else path
    return f"{scheme}{place}{path}"


def masked_text(text: str) -> str:
    """A message with every address in it so.

    >>> masked_text("unknown reward 'http://me:word@judge.org/'; give a name")
    "unknown reward 'http://***@judge.org/'; give a name"
    """
    return _ADDRESS.sub(lambda found: masked_url(found[0]), text)


def is_masked(url: str) -> bool:
    """Whether something was left out of an address by `masked_url`."""
    return f"//{MASK}@" in url or url.endswith((f"?{MASK}", f"#{MASK}"))


def masked(spec: Any) -> Any:
    """A reward's spec, every address in it without what may be secret."""
    if isinstance(spec, Mapping):
        return {key: masked(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [masked(part) for part in spec]
    if isinstance(spec, str) and spec.lower().startswith(_WEB):
        return masked_url(spec)
    return spec


def credentials(url: str) -> tuple[str, str | None]:
    """An address without user and password, and those as ``user:password``."""
    own = urlsplit(url).netloc.rpartition("@")[0]
    return (url.replace(f"{own}@", "", 1), own) if own else (url, None)
