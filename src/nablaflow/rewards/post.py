"""One request over HTTP: every status is an answer, and what is none is told in one line."""

from __future__ import annotations

import base64
import http.client
import queue
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from nablaflow.addresses import credentials

MOST = 1 << 22  # bytes of an answer; a number an image is far less
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
        url: a user and a password in it are sent as Basic, unless there is a token.
        token: sent as Bearer, unless None.
        timeout: seconds until the answer is whole, from a name that is looked up to the last byte.

    Raises:
        NoReplyError: the connection fails, what comes is no HTTP, too much, or not whole in time.
    """
    done: queue.SimpleQueue[Reply | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put(_post(url, body, token, timeout))
        except Exception as error:  # handed over, and raised below
            done.put(error)

    # A thread, since no other deadline holds for a name that is looked up or for headers that drip.
    threading.Thread(target=work, daemon=True).start()
    try:
        found = done.get(timeout=timeout)
    except queue.Empty:
        raise NoReplyError(f"no answer in {timeout:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def _post(url: str, body: bytes, token: str | None, timeout: float) -> Reply:
    url, own = credentials(url)
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    elif own is not None:
        basic = base64.b64encode(unquote(own).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    deadline = time.monotonic() + timeout
    try:
        with urllib.request.build_opener(_AsItIs).open(request, timeout=timeout) as answer:
            return _reply(answer, deadline)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        slow = isinstance(reason, TimeoutError)
        problem = f"no answer in {timeout:g} s" if slow else str(reason) or type(reason).__name__
        plain = "".join(c if c.isprintable() else " " for c in problem)
        raise NoReplyError(" ".join(plain.split())[:120]) from error


def _reply(answer: Any, deadline: float) -> Reply:
    parts, size = [], 0
    while part := answer.read1(PART):
        parts.append(part)
        size += len(part)
        if size > MOST:
            raise NoReplyError(f"an answer of more than {MOST >> 20} MiB")
        if time.monotonic() > deadline:
            raise TimeoutError
    body = b"".join(parts)
    if answer.length:  # what Content-Length promised and did not come
        raise http.client.IncompleteRead(body, answer.length)
    # A date is the other form; the caller's own pause will do there.
    wait = answer.headers.get("Retry-After", "").strip()
    seconds = float(wait) if wait.isascii() and wait.isdigit() else 0.0
    return Reply(answer.status, body, seconds, answer.headers.get("Location", ""))
