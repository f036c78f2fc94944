"""The page that holds finished runs against each other and against the exact tilt."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from nablaflow.errors import UserError
from nablaflow.studio import commands
from nablaflow.studio.answers import Given, changes, shows, whole_number
from nablaflow.studio.compared import Group, groups, picture
from nablaflow.studio.folders import COMPARISONS
from nablaflow.studio.site import Site


@dataclass(frozen=True)
class ComparePages:
    """Runs of one reward and one beta in one picture."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/compare", self.page),
            shows("/compare/{group:int}/picture/{theme}", self.picture),
            changes("/compare/start", self.start),
        ]

    def page(self, request: Request) -> Response:
        found = self._groups()
        out = self.site.next_folder("comparison", below=COMPARISONS)
        runs = self.site.found().runs
        typed = [
            commands.typed(commands.compare([runs[key] for key in group.runs], out))
            for group in found
        ]
        content = {"groups": list(zip(found, typed, strict=True))}
        return self.pages.TemplateResponse(request, "compare.html", content)

    def picture(self, request: Request) -> Response:
        from nablaflow.report.curves import png

        found, place = self._groups(), request.path_params["group"]
        if place >= len(found):
            raise HTTPException(404)
        chosen = request.query_params.get("runs", "").split(",")
        drawn = picture(found[place], chosen, request.path_params["theme"])
        return Response(png(drawn), media_type="image/png")

    def start(self, request: Request, given: Given) -> Given:
        found, place = self._groups(), whole_number(str(given.get("group")), -1)
        asked = given.get("runs")
        if not 0 <= place < len(found) or not isinstance(asked, list):
            raise HTTPException(400)
        runs = self.site.found().runs
        chosen = [runs[key] for key in found[place].runs if key in asked]
        if not chosen:
            raise UserError("runs: choose one at least")
        return {"command": self.site.compare(chosen).command}

    def _groups(self) -> list[Group]:
        return groups(self.site.found().runs, self.site.root)
