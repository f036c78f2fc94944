"""What the page has done on the command line: sampling, drawing, exporting; what runs now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from nablaflow.errors import UserError
from nablaflow.studio.answers import Given, changes, count, folder_of, shows, word
from nablaflow.studio.exports import FORMATS
from nablaflow.studio.folders import address
from nablaflow.studio.looking import GALLERY
from nablaflow.studio.site import Site

LONGEST = 1000  # characters of a prompt
PROMPTS = 200  # at most


@dataclass(frozen=True)
class WorkPages:
    """Commands that are started, watched and stopped."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/job", self.job),
            changes("/job/stop", self.stop),
            changes("/sample", self.sample),
            changes("/run/{folder}/draw", self.draw),
            changes("/run/{folder}/export/{form}", self.export),
        ]

    def job(self, request: Request) -> Response:
        last = self.site.jobs.last
        content: dict[str, Any] = {}
        if last is not None:
            content = {
                "command": last.command,
                "running": last.status is None,
                "ended": last.ended,
                "log": last.log,
                "commands": self.site.jobs.commands,
                "leads": self._leads(address(last.leads_to)),
            }
        return JSONResponse(content)

    def stop(self, request: Request, given: Given) -> Given:
        if self.site.jobs.running is not None:
            self.site.jobs.running.stop()
        return {}

    def sample(self, request: Request, given: Given) -> Given:
        """Fresh images of the model, or of a run, for prompts of the user's own."""
        key, runs = word(given, "source"), self.site.found().runs
        if key and key not in runs:
            raise UserError("source: this run is gone; reload the page")
        source = str(runs[key]) if key else self.site.base.model
        prompts, n, seed = _prompts(given), count(given, "n"), count(given, "seed")
        if not key and not prompts:
            raise UserError("prompts: write one at least, each on its own line")
        return {"command": self.site.sample(source, prompts, n, seed).command}

    def draw(self, request: Request, given: Given) -> Given:
        run = folder_of(self.site, request, "runs")
        return {"command": self.site.draw_gallery(run, GALLERY).command}

    def export(self, request: Request, given: Given) -> Given:
        run, form = folder_of(self.site, request, "runs"), request.path_params["form"]
        if form not in FORMATS:
            raise HTTPException(404)
        return {"command": self.site.export(run, form).command}

    def _leads(self, key: str) -> str:
        """The page of what a command writes, once there is something to show."""
        found = self.site.found()
        if key in found.runs:
            return f"/run/{key}"
        return f"/images/{key}" if key in found.images else ""


def _prompts(given: Given) -> list[str]:
    lines = word(given, "prompts").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if len(prompts) > PROMPTS or any(len(prompt) > LONGEST for prompt in prompts):
        raise UserError(f"prompts: at most {PROMPTS}, of at most {LONGEST} characters each")
    return prompts
