"""The pages on which people judge pairs of images, or give stars, with keys or by touch."""

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
from nablaflow.studio.folders import image_address, shown_name
from nablaflow.studio.questions import SKIP
from nablaflow.studio.showing import version
from nablaflow.studio.site import Site
from nablaflow.studio.table import JudgementTable

LONGEST = 40  # characters of a rater's name
ENOUGH, GOOD = 20, 200  # answers that a fit needs, and that it is good with


@dataclass(frozen=True)
class RatePages:
    """Asking, answering and taking back."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/rate/{folder}/{kind}", self.page),
            changes("/rate/{folder}/{kind}/ask", self.ask),
            changes("/rate/{folder}/{kind}/answer", self.answer),
            changes("/rate/{folder}/{kind}/undo", self.undo),
        ]

    def page(self, request: Request) -> Response:
        folder, asking = self._asking(request)
        asking.table.rows()  # refuses a folder with another table, or with nothing to compare
        content = {
            "name": shown_name(folder, self.site.root),
            "kind": request.path_params["kind"],
            "file": asking.table.path.name,
            "enough": ENOUGH,
            "good": GOOD,
        }
        return self.pages.TemplateResponse(request, "rate.html", content)

    def ask(self, request: Request, given: Given) -> Given:
        return self._question(request, _rater(given))

    def answer(self, request: Request, given: Given) -> Given:
        _, asking = self._asking(request)
        number, answer = given.get("number"), given.get("answer")
        if answer not in (*asking.answers, SKIP) or not isinstance(number, int):
            raise HTTPException(400)
        rater = _rater(given)
        asking.answer(number, answer)
        return self._question(request, rater)

    def undo(self, request: Request, given: Given) -> Given:
        rater = _rater(given)
        undone = self._asking(request)[1].undo(rater)
        return {**self._question(request, rater), "undone": undone}

    def _asking(self, request: Request) -> tuple[Path, Any]:
        folder = folder_of(self.site, request, "images")
        ways = {"pairs": self.site.pairs, "stars": self.site.stars}
        way = ways.get(request.path_params["kind"])
        if way is None:
            raise HTTPException(404)
        return folder, way(folder)

    def _question(self, request: Request, rater: str) -> dict[str, Any]:
        """What to ask next, its images by their addresses, and how far the work is."""
        folder, asking = self._asking(request)
        asked, (own, all_) = asking.ask(rater), asking.counts(rater)
        progress = {"done": own, "total": all_, "agreement": asking.agreement()}
        if asked is None:
            return {**progress, "number": None, "images": []}
        paths = [folder / name for name in asked.images]
        return {
            **progress,
            "number": asked.number,
            "images": [f"{image_address(path)}?v={version(path)}" for path in paths],
            "prompt": asked.prompt,
            "pick": asked.pick,
        }


def judged(folder: Path, table: JudgementTable[Any]) -> int:
    """How many judgements a folder has in a table; none where it is no such table."""
    try:
        return len(table.rows())
    except UserError:
        return 0


def _rater(given: Given) -> str:
    name = given.get("rater")
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST:
        raise UserError(f"rater: a name of at most {LONGEST} characters, please")
    return name.strip()
