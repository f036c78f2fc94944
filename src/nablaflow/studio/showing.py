"""The images of a folder: page by page, by name or by reward, and each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from nablaflow.studio.answers import folder_of, shows, whole_number
from nablaflow.studio.folders import image_address, listing, shown_name
from nablaflow.studio.pictures import thumbnail
from nablaflow.studio.scoring import PATIENCE
from nablaflow.studio.site import Site

PAGE = 500  # images on one page of a gallery
FOR_EVER = {"cache-control": "private, max-age=31536000, immutable"}
ORDERS = {"": "by name", "best": "best first", "worst": "worst first"}


@dataclass(frozen=True)
class ImagePages:
    """Galleries and pictures."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/images/{folder}", self.gallery),
            shows("/images/{folder}/{image}", self.image),
        ]

    def gallery(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "images")
        page = whole_number(request.query_params.get("page", "0"))
        asked = request.query_params.get("sort", "")
        fitted = self.site.scoring.is_fitted(folder)
        order = asked if asked in ORDERS and fitted else ""
        ranked = self._ranked(folder, order)
        content = {
            "images": [
                (image_address(path), version(path), path.name, score)
                for path, score in ranked[page * PAGE :][:PAGE]
            ],
            "page": page,
            "last": max(0, (len(ranked) - 1) // PAGE),
            "total": len(ranked),
            "fitted": fitted,
            "orders": ORDERS,
            "order": order,
            "name": shown_name(folder, self.site.root),
        }
        return self.pages.TemplateResponse(request, "gallery.html", content)

    def image(self, request: Request) -> Response:
        """A file, or a small copy; for ever, where the address says which version it is."""
        known = listing(folder_of(self.site, request, "images")).by_address
        path = known.get(request.path_params["image"])
        if path is None:
            raise HTTPException(404)
        headers = FOR_EVER if "v" in request.query_params else {}
        if "small" in request.query_params:
            content, kind = thumbnail(path)
            return Response(content, media_type=kind, headers=headers)
        return FileResponse(path, headers=headers)

    def _ranked(self, folder: Path, order: str) -> Sequence[tuple[Path, float | None]]:
        images = listing(folder).paths
        taste = self.site.scoring.taste(folder, PATIENCE) if order else None
        if taste is None:
            return [(path, None) for path in images]
        best = taste.best_first() if order == "best" else taste.best_first()[::-1]
        place = {path.name: path for path in images}
        return [(place[name], score) for name, score in best if name in place]


def version(path: Path) -> str:
    """Another text when a file was written again."""
    try:
        return f"{path.stat().st_mtime_ns:x}"
    except OSError:  # gone since it was listed
        return "0"
