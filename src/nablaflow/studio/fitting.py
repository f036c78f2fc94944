"""The page that fits a reward, shows what a tilt by it would do, and starts the alignment."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from nablaflow.errors import UserError
from nablaflow.studio.answers import Given, changes, folder_of, shows, whole_number
from nablaflow.studio.folders import images_of
from nablaflow.studio.site import Site, align_command, fit_command

SEEN = 8  # images that the reward likes best, and as many that it likes least
FREQUENT = 12  # images that the tilt makes frequent
UPDATES, MOST = 60, 10**6


@dataclass(frozen=True)
class FitPages:
    """From judgements to an aligned model, one command after the other."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/fit/{folder}", self.page),
            shows("/fit/{folder}/preview", self.preview),
            shows("/job", self.job),
            changes("/fit/{folder}/start", self.start),
            changes("/fit/{folder}/align", self.align),
            changes("/job/stop", self.stop),
        ]

    def page(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "images")
        rows, taste = self.site.judging(folder).rows(), self.site.taste(folder)
        place = {path.name: number for number, path in enumerate(images_of(folder))}
        ranked = [] if taste is None else [(place[n], s) for n, s in taste.best_first()]
        content = {
            "name": folder.name,
            "rows": len(rows),
            "fitted": taste is not None,
            "accuracy": None if taste is None else taste.accuracy,
            "command": _typed(fit_command(folder, self.site.features)),
            "best": ranked[:SEEN],
            "worst": ranked[::-1][:SEEN],
            "updates": UPDATES,
        }
        return self.pages.TemplateResponse(request, "fit.html", content)

    def preview(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "images")
        beta, taste = _beta(request.query_params.get("beta")), self.site.taste(folder)
        if taste is None:
            raise UserError("fit a reward first")
        seen = taste.preview(beta)
        order = _largest(seen.weights.tolist(), FREQUENT)
        place = {path.name: number for number, path in enumerate(images_of(folder))}
        content = {
            "share": seen.strength.effective_share,
            "nats": seen.strength.nats,
            "reward": seen.strength.reward_mean,
            "tilted": seen.strength.tilted_reward_mean,
            "diversity": seen.diversity,
            "images": [(place[taste.names[at]], seen.weights.tolist()[at]) for at in order],
            "command": _typed(align_command(self.site, folder, beta, UPDATES)),
        }
        return JSONResponse(content)

    def job(self, request: Request) -> Response:
        last = self.site.jobs.last
        content: dict[str, Any] = {}
        if last is not None:
            content = {"command": last.command, "status": last.status, "log": last.log}
        return JSONResponse(content)

    def start(self, request: Request, given: Given) -> Given:
        return {"command": self.site.fit(folder_of(self.site, request, "images")).command}

    def align(self, request: Request, given: Given) -> Given:
        folder, beta = folder_of(self.site, request, "images"), _beta(given.get("beta"))
        updates = min(max(whole_number(str(given.get("updates")), UPDATES), 1), MOST)
        return {"command": self.site.align(folder, beta, updates).command}

    def stop(self, request: Request, given: Given) -> Given:
        if self.site.jobs.running is not None:
            self.site.jobs.running.stop()
        return {}


def _largest(weights: list[float], count: int) -> list[int]:
    """Places of the largest weights, largest first."""
    return sorted(range(len(weights)), key=weights.__getitem__, reverse=True)[:count]


def _typed(arguments: list[str]) -> str:
    return shlex.join(["nablaflow", *arguments])


def _beta(given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 < value <= 1e6:
        raise UserError("beta: must be a number above 0 and at most 1,000,000")
    return value
