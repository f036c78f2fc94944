"""The application that `serve` puts on 127.0.0.1: pages, pictures, and what they ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from nablaflow.errors import UserError
from nablaflow.studio.access import Access
from nablaflow.studio.comparing import ComparePages
from nablaflow.studio.data import showable
from nablaflow.studio.figures import CURVES, LABELS, plus_minus, share
from nablaflow.studio.fitting import FitPages
from nablaflow.studio.judging import RatePages
from nablaflow.studio.looking import LookPages
from nablaflow.studio.showing import ImagePages
from nablaflow.studio.site import Site
from nablaflow.studio.working import WorkPages

HERE = Path(__file__).parent
PARTS = (LookPages, ImagePages, ComparePages, RatePages, FitPages, WorkPages)


def make_app(site: Site, token: str) -> Starlette:
    """The application of one page; Jinja escapes whatever comes from a folder."""
    pages = Jinja2Templates(HERE / "templates")
    pages.env.globals.update(token=token, write=site.write, LABELS=LABELS, CURVES=CURVES)
    pages.env.filters.update(plus_minus=plus_minus, share=share)
    static = Mount("/static", StaticFiles(directory=HERE / "static"))
    return Starlette(
        routes=[static, *(route for part in PARTS for route in part(site, pages).routes())],
        middleware=[Middleware(Access, token=token, write=site.write)],
        exception_handlers={UserError: _refusal(pages, 409), OSError: _refusal(pages, 507)},
        lifespan=_lifespan(site),
    )


def _lifespan(site: Site) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        site.close()

    return lifespan


def _refusal(pages: Jinja2Templates, status: int) -> Callable[[Request, Exception], Any]:
    """What is wrong, in one line: as a page where a page was asked for."""

    async def answer(request: Request, error: Exception) -> Response:
        said = showable(str(error))
        if isinstance(error, OSError):
            said = f"not written: {error.strerror or error}"
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            content = {"said": said}
            return pages.TemplateResponse(request, "error.html", content, status_code=status)
        return JSONResponse({"error": said}, status)

    return answer
