"""The page that fits a reward, shows what a tilt by it would do, and starts the alignment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from nablaflow.errors import UserError
from nablaflow.storage.judged import PAIRS, RATINGS
from nablaflow.studio import commands
from nablaflow.studio.answers import Given, changes, count, folder_of, shows, word
from nablaflow.studio.folders import image_address, listing, shown_name
from nablaflow.studio.judging import ENOUGH, judged
from nablaflow.studio.pairs import PairRow
from nablaflow.studio.scoring import PATIENCE
from nablaflow.studio.showing import version
from nablaflow.studio.site import Site
from nablaflow.studio.stars import StarRow
from nablaflow.studio.table import JudgementTable

SEEN = 8  # images that the reward likes best, and as many that it likes least
DRAWN = 24  # images as they are, and as many as the tilt has them
UPDATES = 60
KINDS = {"pairs": (PAIRS, PairRow), "ratings": (RATINGS, StarRow)}


@dataclass(frozen=True)
class FitPages:
    """From judgements to an aligned model, one command after the other."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/fit/{folder}", self.page),
            shows("/fit/{folder}/calibration", self.calibration),
            shows("/fit/{folder}/preview", self.preview),
            changes("/fit/{folder}/start", self.start),
            changes("/fit/{folder}/align", self.align),
        ]

    def page(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "images")
        kinds, fitted = _judged(folder), self.site.scoring.is_fitted(folder)
        taste = self.site.scoring.taste(folder, PATIENCE)
        ranked = [] if taste is None else _placed(folder, taste.best_first())
        content = {
            "name": shown_name(folder, self.site.root),
            "kinds": kinds,
            "most": max(kinds.values(), default=0),
            "enough": ENOUGH,
            "fitted": fitted,
            "taste": taste,
            "command": commands.typed(commands.fit(folder, self.site.features, _kind(kinds))),
            "best": ranked[:SEEN],
            "worst": ranked[::-1][:SEEN],
            "beta": 1.0 if taste is None else taste.usual_beta(),
            "updates": UPDATES,
        }
        return self.pages.TemplateResponse(request, "fit.html", content)

    def calibration(self, request: Request) -> Response:
        picture = folder_of(self.site, request, "images") / commands.REWARD
        picture = picture.with_suffix(".png")
        if picture.is_symlink() or not picture.is_file():
            raise HTTPException(404)
        return FileResponse(picture)

    def preview(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "images")
        beta = _beta(request.query_params.get("beta"))
        taste = self.site.scoring.taste(folder, PATIENCE)
        if taste is None:
            raise UserError("fit a reward first")
        seen = taste.preview(beta)
        names, weights = taste.names, seen.weights.tolist()
        drawn = [(names[at], weights[at]) for at in seen.draw(DRAWN)]
        plain = [(names[at], weights[at]) for at in _even(len(names), DRAWN)]
        run = self.site.next_folder("aligned")
        content = {
            "share": seen.strength.effective_share,
            "nats": seen.strength.nats,
            "reward": vars(seen.reward),
            "tilted": vars(seen.tilted),
            "diversity": vars(seen.diversity),
            "trusted": seen.trusted,
            "plain": _placed(folder, plain),
            "images": _placed(folder, drawn),
            "command": commands.typed(
                commands.align(self.site.base, folder, beta, UPDATES, run)
            ).replace(f"training.updates={UPDATES}", "training.updates=UPDATES"),
        }
        return JSONResponse(content)

    def start(self, request: Request, given: Given) -> Given:
        folder = folder_of(self.site, request, "images")
        kinds, asked = _judged(folder), word(given, "kind")
        kind = asked if asked in kinds and len(kinds) > 1 else _kind(kinds)
        return {"command": self.site.fit(folder, kind).command}

    def align(self, request: Request, given: Given) -> Given:
        folder, beta = folder_of(self.site, request, "images"), _beta(given.get("beta"))
        return {"command": self.site.align(folder, beta, count(given, "updates")).command}


def _judged(folder: Path) -> dict[str, int]:
    """The kinds of judgements that a folder has, and how many of each."""
    found = {
        kind: judged(folder, JudgementTable(folder / file, row))
        for kind, (file, row) in KINDS.items()
    }
    return {kind: number for kind, number in found.items() if number}


def _kind(kinds: Mapping[str, int]) -> str | None:
    """The kind to be named: of two the larger; where there is one it goes without saying."""
    return max(kinds, key=lambda kind: kinds[kind]) if len(kinds) > 1 else None


def _placed(folder: Path, scored: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Images by their addresses, for those that are there still."""
    known = {path.name: path for path in listing(folder).paths}
    return [
        (f"{image_address(known[name])}?small&v={version(known[name])}", value)
        for name, value in scored
        if name in known
    ]


def _even(total: int, count: int) -> list[int]:
    """Places as even as they come."""
    return [place * total // min(count, total) for place in range(min(count, total))]


def _beta(given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 < value <= 1e6:
        raise UserError("beta: must be a number above 0 and at most 1,000,000")
    return value
