"""One request over HTTP: every status is an answer, and what is none is told in one line."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

PART = 1 << 16  # bytes that are read at most before the clock is looked at


class NoReplyError(Exception):
    """There is no whole answer; its text says why, on one line."""


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: of HTTP.
        body: all of it.
        retry_after: seconds that it asks to wait before the next request, 0 if it does not.
        location: where it says that the address has moved, "" if it does not.
    """

    status: int
    body: bytes
    retry_after: float = 0.0
    location: str = ""


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """No status is an error, so none is followed elsewhere: a redirect would take the token along.

    It would also be a GET, and its page would be taken for an answer.
    """

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def post(url: str, body: bytes, *, token: str | None, timeout: float) -> Reply:
    """Send JSON and wait for the answer.

    Args:
        token: sent as Bearer, unless None.
        timeout: seconds until the answer is whole. Between two bytes the wait may be as long, so a
            judge that falls silent at the end is given up after at most twice that.

    Raises:
        NoReplyError: the connection fails, what comes is no HTTP, or not whole in that time.
    """
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    deadline = time.monotonic() + timeout
    try:
        with urllib.request.build_opener(_AsItIs).open(request, timeout=timeout) as answer:
            return _reply(answer, deadline)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        slow = isinstance(reason, TimeoutError)
        problem = f"no answer in {timeout:g} s" if slow else str(reason) or type(reason).__name__
        raise NoReplyError(" ".join(problem.split())[:120]) from error


def _reply(answer: Any, deadline: float) -> Reply:
    parts = []
    while part := answer.read1(PART):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
    body = b"".join(parts)
    if answer.length:  # what Content-Length promised and did not come
        raise http.client.IncompleteRead(body, answer.length)
    # A date is the other form; the caller's own pause will do there.
    wait = answer.headers.get("Retry-After", "").strip()
    seconds = float(wait) if wait.isascii() and wait.isdigit() else 0.0
    return Reply(answer.status, body, seconds, answer.headers.get("Location", ""))
