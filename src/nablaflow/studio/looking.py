"""Pages to look at: all runs, one run while it trains, the images of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from nablaflow.report.curves import DARK, LIGHT, png
from nablaflow.report.style import CSS
from nablaflow.report.table import COLUMNS, rows
from nablaflow.report.words import the_way
from nablaflow.studio.answers import file_of, folder_of, shows, whole_number
from nablaflow.studio.folders import images_of
from nablaflow.studio.look import Shown, curve, curves_of, look, stamp
from nablaflow.studio.pictures import thumbnail
from nablaflow.studio.site import Site

PAGE = 500  # images on one page of a gallery
FOR_EVER = {"cache-control": "private, max-age=3600"}


@dataclass(frozen=True)
class LookPages:
    """What only reads."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/", self.index),
            shows("/report.css", lambda request: Response(CSS, media_type="text/css")),
            shows("/run/{folder}", self.run),
            shows("/run/{folder}/live", self.live),
            shows("/run/{folder}/curve/{which}/{theme}", self.curve),
            shows("/run/{folder}/sheet/{number:int}", self.sheet),
            shows("/images/{folder}", self.gallery),
            shows("/images/{folder}/{number:int}", self.image),
        ]

    def index(self, request: Request) -> Response:
        found, root = self.site.found(), self.site.root
        runs = {key: look(path, root) for key, path in found.runs.items()}
        images = {key: _about(path, root) for key, path in found.images.items()}
        return self.pages.TemplateResponse(request, "index.html", {"runs": runs, "images": images})

    def run(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "runs")
        seen = stamp(folder)  # before what it stands for is read
        content = {**_content(look(folder, self.site.root)), "stamp": seen}
        return self.pages.TemplateResponse(request, "run.html", content)

    def live(self, request: Request) -> Response:
        return JSONResponse({"stamp": stamp(folder_of(self.site, request, "runs"))})

    def curve(self, request: Request) -> Response:
        shown = look(folder_of(self.site, request, "runs"), self.site.root)
        theme = DARK if request.path_params["theme"] == "dark" else LIGHT
        drawn = curve(shown, request.path_params["which"], theme)
        if drawn is None:
            raise HTTPException(404)
        return Response(png(drawn), media_type="image/png")

    def sheet(self, request: Request) -> Response:
        sheets = look(folder_of(self.site, request, "runs"), self.site.root).sheets
        return file_of(list(sheets), request.path_params["number"])

    def gallery(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "images")
        images, taste = images_of(folder), self.site.taste(folder)
        by_reward = request.query_params.get("sort") == "reward" and taste is not None
        order = list(enumerate([None] * len(images)))
        if by_reward and taste is not None:
            place = {path.name: number for number, path in enumerate(images)}
            order = [(place[n], score) for n, score in taste.best_first() if n in place]
        page = whole_number(request.query_params.get("page", "0"))
        shown = [(at, images[at].name, score) for at, score in order[page * PAGE :][:PAGE]]
        content = {
            "images": shown,
            "page": page,
            "last": max(0, (len(images) - 1) // PAGE),
            "total": len(images),
            "fitted": taste is not None,
            "sorted": by_reward,
            "name": folder.name,
        }
        return self.pages.TemplateResponse(request, "gallery.html", content)

    def image(self, request: Request) -> Response:
        images = images_of(folder_of(self.site, request, "images"))
        number = request.path_params["number"]
        if "small" in request.query_params and number < len(images):
            return Response(thumbnail(images[number]), media_type="image/png", headers=FOR_EVER)
        return file_of(images, number)


def _about(folder: Path, root: Path) -> dict[str, Any]:
    name = str(folder.relative_to(root)) if folder != root else folder.name
    return {"name": name, "count": len(images_of(folder))}


def _content(shown: Shown) -> dict[str, Any]:
    figures = shown.figures
    closing, error = figures.get("closing"), figures.get("closing_se")
    return {
        "shown": shown,
        "headings": COLUMNS,
        "rows": rows(figures) if {"reference", "policy"} <= figures.keys() else [],
        "way": the_way(closing, error) if closing is not None and error is not None else "",
        "curves": curves_of(shown),
    }
