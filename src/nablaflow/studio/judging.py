"""The page on which people judge pairs of images, with keys or by touch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from nablaflow.errors import UserError
from nablaflow.studio.answers import Given, changes, folder_of, shows
from nablaflow.studio.folders import images_of
from nablaflow.studio.pairs import agreement
from nablaflow.studio.site import Site

ANSWERS = ("left", "right", "skip")
LONGEST = 40  # characters of a rater's name


@dataclass(frozen=True)
class RatePages:
    """Asking, answering and taking back."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/rate/{folder}", self.page),
            changes("/rate/{folder}/ask", self.ask),
            changes("/rate/{folder}/answer", self.answer),
            changes("/rate/{folder}/undo", self.undo),
        ]

    def page(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "images")
        self.site.judging(folder)  # refuses a folder in which nothing can be compared
        return self.pages.TemplateResponse(request, "rate.html", {"name": folder.name})

    def ask(self, request: Request, given: Given) -> Given:
        return self._question(folder_of(self.site, request, "images"), _rater(given))

    def answer(self, request: Request, given: Given) -> Given:
        number, answer = given.get("number"), given.get("answer")
        if answer not in ANSWERS or not isinstance(number, int):
            raise HTTPException(400)
        folder, rater = folder_of(self.site, request, "images"), _rater(given)
        self.site.judging(folder).answer(number, answer)
        return self._question(folder, rater)

    def undo(self, request: Request, given: Given) -> Given:
        folder, rater = folder_of(self.site, request, "images"), _rater(given)
        undone = self.site.judging(folder).undo(rater)
        return {**self._question(folder, rater), "undone": undone}

    def _question(self, folder: Path, rater: str) -> dict[str, Any]:
        """The next pair, its images by their places in the folder, and how far the work is."""
        judging = self.site.judging(folder)
        asked, rows = judging.ask(rater), judging.rows()
        place = {path.name: number for number, path in enumerate(images_of(folder))}
        same, of = agreement(rows)
        return {
            "number": asked.number,
            "left": place.get(asked.left),
            "right": place.get(asked.right),
            "prompt": asked.prompt,
            "pick": asked.pick,
            "done": sum(row.rater == rater for row in rows),
            "total": len(rows),
            "agreement": f"{same} of {of}" if of else "",
        }


def _rater(given: Given) -> str:
    name = given.get("rater")
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST:
        raise UserError(f"rater: a name of at most {LONGEST} characters, please")
    return name.strip()
