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
from nablaflow.studio.fitting import FitPages
from nablaflow.studio.judging import RatePages
from nablaflow.studio.looking import LookPages
from nablaflow.studio.site import Site

HERE = Path(__file__).parent


def make_app(site: Site, token: str) -> Starlette:
    """The application of one page; Jinja escapes whatever comes from a folder."""
    pages = Jinja2Templates(HERE / "templates")
    pages.env.globals.update(token=token, write=site.write)
    parts = (LookPages(site, pages), RatePages(site, pages), FitPages(site, pages))
    static = Mount("/static", StaticFiles(directory=HERE / "static"))
    return Starlette(
        routes=[static, *(route for part in parts for route in part.routes())],
        middleware=[Middleware(Access, token=token, write=site.write)],
        exception_handlers={UserError: _mistake, OSError: _disk},
        lifespan=_lifespan(site),
    )


def _lifespan(site: Site) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        site.jobs.close()

    return lifespan


async def _mistake(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)


async def _disk(request: Request, error: Exception) -> Response:
    said = error.strerror if isinstance(error, OSError) else None
    return JSONResponse({"error": f"not written: {said or error}"}, 507)
