"""Who may use the page: one browser on this machine, that was given the token.

The token comes once in the URL and is then a cookie that no other site's request carries
(``SameSite=Strict``). A request must name this server as its host, or a page elsewhere whose name
was made to lead here (DNS rebinding) could read what is shown; one that changes something must come
from this page and carry the token in a header as well, which a form of another site cannot set.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE, HEADER = "nablaflow", "x-nablaflow-token"
LOCAL = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def new_token() -> str:
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Access:
    """ASGI middleware that lets nobody else in.

    Attributes:
        token: what the URL carries.
        write: whether anything may be changed.
    """

    app: ASGIApp
    token: str
    write: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refusal(Request(scope))
        await (refused or self.app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that may not go on; None for one that may."""
        if request.headers.get("host", "").rpartition(":")[0] not in LOCAL:
            return PlainTextResponse("This page answers on 127.0.0.1 alone.", 421)
        given = request.query_params.get("token")
        if given is not None and self._is_token(given) and request.method == "GET":
            answer = RedirectResponse(request.url.path, 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        if not self._is_token(request.cookies.get(COOKIE, "")):
            return PlainTextResponse("Open the address that the terminal shows.", 403)
        if request.method in ("GET", "HEAD"):
            return None
        return self._change_refused(request)

    def _change_refused(self, request: Request) -> Response | None:
        origin = request.headers.get("origin", "")
        own = urlsplit(origin).netloc == request.headers["host"]
        if not own or not self._is_token(request.headers.get(HEADER, "")):
            return PlainTextResponse("This did not come from the page itself.", 403)
        if not self.write:
            return PlainTextResponse("Started for looking only; start it with --write.", 403)
        return None

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())
