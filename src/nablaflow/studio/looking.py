"""Pages to look at: all runs, one run while it trains, what the words mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from nablaflow.studio import commands
from nablaflow.studio.answers import folder_of, shows
from nablaflow.studio.exports import FORMATS, exported, single_file
from nablaflow.studio.figures import further
from nablaflow.studio.folders import address, images_of, shown_name
from nablaflow.studio.galleries import place_of, read_gallery
from nablaflow.studio.look import Shown, curve, curves_of, look, stamp
from nablaflow.studio.site import Site

COLUMNS = {"reference": "reference", "policy": "aligned", "exact_tilt": "exact tilt"}
"""Key in ``summary.json`` to the column's heading."""

GALLERY = 16  # images of each position, as the page draws them
RUNS_NEED, FITS_NEED = "nablaflow.report.curves", "nablaflow.studio.taste"
"""What pages of runs, and of images with a fitted reward, need, and takes seconds to load."""

WEIGHTS = Path("lora", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True)
class LookPages:
    """What only reads."""

    site: Site
    pages: Jinja2Templates

    def routes(self) -> list[Route]:
        return [
            shows("/", self.index),
            shows("/words", self.words),
            shows("/run/{folder}", self.run),
            shows("/run/{folder}/live", self.live),
            shows("/run/{folder}/gallery", self.gallery),
            shows("/run/{folder}/curve/{which}/{theme}", self.curve),
            shows("/run/{folder}/sheet/{number:int}", self.sheet),
            shows("/run/{folder}/lora", self.lora),
            shows("/run/{folder}/export/{form}", self.export),
        ]

    def index(self, request: Request) -> Response:
        found, root = self.site.found(now=True), self.site.root
        drawn = set(found.galleries.values())
        apart = {key: path for key, path in found.images.items() if path.parent not in drawn}
        content = {
            "runs": {key: look(path, root) for key, path in found.runs.items()},
            "images": {key: _about(path, root) for key, path in apart.items()},
            "sources": {"": self.site.base.model, **_names(found.runs, root)},
        }
        fitted = any(map(self.site.scoring.is_fitted, found.images.values()))
        needed = [RUNS_NEED] * bool(found.runs) + [FITS_NEED] * fitted
        then = BackgroundTask(self.site.scoring.warm_up, *needed)
        return self.pages.TemplateResponse(request, "index.html", content, background=then)

    def words(self, request: Request) -> Response:
        return self.pages.TemplateResponse(request, "words.html")

    def run(self, request: Request) -> Response:
        folder = folder_of(self.site, request, "runs")
        seen = stamp(folder)  # before what it stands for is read
        drawn = commands.gallery(folder, GALLERY, place_of(self.site.root, folder))
        running = self.site.jobs.running
        content = {
            **_content(look(folder, self.site.root)),
            "stamp": seen,
            "n": GALLERY,
            "command": commands.typed(drawn),
            "ours": running is not None and running.leads_to == folder,
            "has_lora": _lora(folder) is not None,
            "formats": FORMATS,
            "exported": self._exported(folder),
            "export": commands.typed(["export", str(folder), "--format", "…"]),
        }
        return self.pages.TemplateResponse(request, "run.html", content)

    def live(self, request: Request) -> Response:
        return JSONResponse({"stamp": stamp(folder_of(self.site, request, "runs"))})

    def gallery(self, request: Request) -> Response:
        """Positions and their images, for the sliders; an empty object where none was drawn."""
        place = place_of(self.site.root, folder_of(self.site, request, "runs"))
        known = self.site.found().galleries
        found = read_gallery(place) if address(place) in known else None
        return JSONResponse(found or {})

    def curve(self, request: Request) -> Response:
        from nablaflow.report.curves import png

        shown = look(folder_of(self.site, request, "runs"), self.site.root)
        drawn = curve(shown, request.path_params["which"], request.path_params["theme"])
        if drawn is None:
            raise HTTPException(404)
        return Response(png(drawn), media_type="image/png")

    def sheet(self, request: Request) -> Response:
        sheets = look(folder_of(self.site, request, "runs"), self.site.root).sheets
        number = request.path_params["number"]
        if not 0 <= number < len(sheets):
            raise HTTPException(404)
        return FileResponse(sheets[number])

    def lora(self, request: Request) -> Response:
        weights = _lora(folder_of(self.site, request, "runs"))
        if weights is None:
            raise HTTPException(404)
        return FileResponse(weights, filename=weights.name)

    def export(self, request: Request) -> Response:
        """The weights of an export that is one file."""
        run, form = folder_of(self.site, request, "runs"), request.path_params["form"]
        place = exported(self.site.root, run).get(form)
        weights = None if place is None else single_file(place)
        if weights is None:
            raise HTTPException(404)
        return FileResponse(weights, filename=weights.name)

    def _exported(self, run: Path) -> dict[str, dict[str, Any]]:
        """By format: where it is, and whether it can be downloaded."""
        root = self.site.root
        return {
            form: {"name": shown_name(place, root), "file": single_file(place) is not None}
            for form, place in exported(root, run).items()
        }


def _lora(run: Path) -> Path | None:
    """The adapter's file, as diffusers loads it; None where there is none, or a link."""
    weights = run / WEIGHTS
    linked = weights.is_symlink() or weights.parent.is_symlink()
    return weights if weights.is_file() and not linked else None


def _about(folder: Path, root: Path) -> dict[str, Any]:
    return {"name": shown_name(folder, root), "count": len(images_of(folder))}


def _names(folders: Mapping[str, Path], root: Path) -> dict[str, str]:
    return {key: shown_name(path, root) for key, path in folders.items()}


def _content(shown: Shown) -> dict[str, Any]:
    columns = {key: shown.summary[key] for key in COLUMNS if key in shown.summary}
    return {
        "shown": shown,
        "columns": COLUMNS,
        "further": further(columns),
        "measured": {"reference", "policy"} <= columns.keys(),
        "curves": curves_of(shown),
    }
