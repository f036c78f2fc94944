"""How a request becomes an answer: in a thread, with what it names looked up in a listing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nablaflow.config.values import check_scalar
from nablaflow.errors import UserError
from nablaflow.studio.site import Site

Given = dict[str, Any]
"""What a request that changes something says, as JSON."""

MOST = 10**6  # of anything that is counted


def shows(path: str, show: Callable[[Request], Response]) -> Route:
    """A route that only reads; it does so in a thread, while others are answered."""

    async def answer(request: Request) -> Response:
        return await run_in_threadpool(show, request)

    return Route(path, answer)


def changes(path: str, change: Callable[[Request, Given], Given]) -> Route:
    """A route that changes something; `Access` has let it through."""

    async def answer(request: Request) -> Response:
        try:
            given = await request.json()
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise HTTPException(400)
        _check_values(given)
        return JSONResponse(await run_in_threadpool(change, request, given))

    return Route(path, answer, methods=["POST"])


def _check_values(given: Given) -> None:
    """JSON can say numbers and characters that no setting can hold."""
    for field, value in given.items():
        try:
            check_scalar(value)
        except ValueError as error:
            raise UserError(f"{field}: {error}") from None


def word(given: Given, field: str) -> str:
    """A text; nothing where there is none."""
    said = given.get(field)
    return said if isinstance(said, str) else ""


def folder_of(site: Site, request: Request, kind: Literal["runs", "images"]) -> Path:
    """The folder that a request's address stands for, if it is one of those shown."""
    address = request.path_params["folder"]
    for now in (False, True):  # it may be newer than what was found a moment ago
        known: dict[str, Path] = getattr(site.found(now=now), kind)
        if address in known:
            return known[address]
    raise HTTPException(404)


def whole_number(text: str, default: int = 0) -> int:
    return int(text) if text.isdecimal() and len(text) < 9 else default


def count(given: Given, field: str) -> int:
    """A number of things from 1 on.

    Raises:
        UserError: it is none.
    """
    number = whole_number(str(given.get(field)), -1)
    if not 1 <= number <= MOST:
        raise UserError(f"{field}: must be a whole number from 1 to {MOST:,}")
    return number
