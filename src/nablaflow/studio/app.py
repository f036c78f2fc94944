"""The pages and what they ask for: an ASGI application that `serve` puts on 127.0.0.1."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from nablaflow.errors import UserError
from nablaflow.report.curves import DARK, LIGHT, png
from nablaflow.report.style import CSS
from nablaflow.report.table import html_table
from nablaflow.report.words import the_way
from nablaflow.studio.access import Access
from nablaflow.studio.folders import images_of, prompt_of
from nablaflow.studio.look import Shown, curve, curves_of, look, stamp
from nablaflow.studio.pairs import agreement
from nablaflow.studio.pictures import thumbnail
from nablaflow.studio.site import Site, align_command, fit_command

HERE = Path(__file__).parent
PAGE = 500  # images on one page of a gallery
ANSWERS = ("left", "right", "skip")
RATER = 40  # characters of a rater's name

Handler = Callable[[Request], Response]


def make_app(site: Site, token: str) -> Starlette:
    """The application of one page; Jinja escapes whatever comes from a folder."""
    pages = Jinja2Templates(HERE / "templates")
    pages.env.globals.update(token=token, write=site.write)
    app = Starlette(
        routes=[*_looking(site, pages), *_judging(site, pages), Mount("/static", _static())],
        middleware=[Middleware(Access, token=token, write=site.write)],
        exception_handlers={UserError: _mistake},
        lifespan=_lifespan(site),
    )
    return app


def _static() -> StaticFiles:
    return StaticFiles(directory=HERE / "static")


def _lifespan(site: Site) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        site.jobs.close()

    return lifespan


async def _mistake(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)


def _in_a_thread(handler: Handler) -> Callable[[Request], Any]:
    """Reading a folder may take a while; others are answered meanwhile."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        return await run_in_threadpool(handler, request)

    return answer


def _get(path: str, handler: Handler) -> Route:
    return Route(path, _in_a_thread(handler))


# --- looking --------------------------------------------------------------------------------------


def _looking(site: Site, pages: Jinja2Templates) -> list[Route]:
    def folder(request: Request, kind: str) -> Path:
        known = getattr(site.found(), kind)
        if request.path_params["folder"] not in known:
            raise HTTPException(404)
        return known[request.path_params["folder"]]

    def index(request: Request) -> Response:
        found = site.found()
        runs = {key: look(path, site.root) for key, path in found.runs.items()}
        images = {key: _named(path, site.root) for key, path in found.images.items()}
        return pages.TemplateResponse(request, "index.html", {"runs": runs, "images": images})

    def run(request: Request) -> Response:
        place = folder(request, "runs")
        shown = look(place, site.root)
        return pages.TemplateResponse(request, "run.html", {**_of_run(shown), "stamp": stamp(place)})

    def live(request: Request) -> Response:
        return JSONResponse({"stamp": stamp(folder(request, "runs"))})

    def picture(request: Request) -> Response:
        drawn = curve(
            look(folder(request, "runs"), site.root),
            request.path_params["which"],
            DARK if request.path_params["theme"] == "dark" else LIGHT,
        )
        if drawn is None:
            raise HTTPException(404)
        return Response(png(drawn), media_type="image/png")

    def sheet(request: Request) -> Response:
        sheets = look(folder(request, "runs"), site.root).sheets
        return _file(sheets, request.path_params["number"])

    def gallery(request: Request) -> Response:
        place = folder(request, "images")
        page = max(0, _whole(request.query_params.get("page", "0")))
        images, best = images_of(place), request.query_params.get("sort") == "reward"
        order = list(range(len(images)))
        taste = site.taste(place)
        scores: dict[int, float] = {}
        if best and taste is not None:
            number = {path.name: at for at, path in enumerate(images)}
            ranked = [(number[name], score) for name, score in taste.best_first() if name in number]
            order, scores = [at for at, _ in ranked], dict(ranked)
        shown = [(at, images[at].name, scores.get(at)) for at in order[page * PAGE :][:PAGE]]
        more = {"page": page, "last": max(0, (len(images) - 1) // PAGE), "total": len(images)}
        state = {"fitted": taste is not None, "sorted": bool(scores), "name": place.name}
        return pages.TemplateResponse(request, "gallery.html", {"images": shown, **more, **state})

    def image(request: Request) -> Response:
        images = images_of(folder(request, "images"))
        number = request.path_params["number"]
        if "small" in request.query_params and number < len(images):
            return Response(thumbnail(images[number]), media_type="image/png")
        return _file(images, number)

    def style(request: Request) -> Response:
        return Response(CSS, media_type="text/css")

    return [
        _get("/", index),
        _get("/report.css", style),
        _get("/run/{folder}", run),
        _get("/run/{folder}/live", live),
        _get("/run/{folder}/curve/{which}/{theme}", picture),
        _get("/run/{folder}/sheet/{number:int}", sheet),
        _get("/images/{folder}", gallery),
        _get("/images/{folder}/{number:int}", image),
    ]


def _named(folder: Path, root: Path) -> dict[str, Any]:
    name = str(folder.relative_to(root)) if folder != root else folder.name
    return {"name": name, "count": len(images_of(folder))}


def _of_run(shown: Shown) -> dict[str, Any]:
    whole = {"reference", "policy"} <= shown.summary.keys()
    closing, error = (shown.summary.get(key) for key in ("closing", "closing_se"))
    known = isinstance(closing, int | float) and isinstance(error, int | float)
    return {
        "shown": shown,
        "table": html_table(shown.summary) if whole else "",
        "way": the_way(closing, error) if known else "",
        "curves": curves_of(shown),
    }


def _file(files: Any, number: int) -> Response:
    if not 0 <= number < len(files):
        raise HTTPException(404)
    return FileResponse(files[number])


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 9 else 0


# --- judging, fitting, aligning -------------------------------------------------------------------


def _judging(site: Site, pages: Jinja2Templates) -> list[Route]:
    def folder(request: Request) -> Path:
        known = site.found().images
        if request.path_params["folder"] not in known:
            raise HTTPException(404)
        return known[request.path_params["folder"]]

    def page(request: Request) -> Response:
        place = folder(request)
        site.judging(place)  # refuses what cannot be compared
        return pages.TemplateResponse(request, "rate.html", {"name": place.name})

    def question(place: Path, rater: str) -> dict[str, Any]:
        judging = site.judging(place)
        asked, rows = judging.ask(rater), judging.rows()
        number = {path.name: at for at, path in enumerate(images_of(place))}
        same, of = agreement(rows)
        return {
            "number": asked.number,
            "left": number.get(asked.left),
            "right": number.get(asked.right),
            "prompt": asked.prompt,
            "pick": asked.pick,
            "done": sum(row.rater == rater for row in rows),
            "total": len(rows),
            "agreement": f"{same} of {of}" if of else "",
        }

    def fit_page(request: Request) -> Response:
        place = folder(request)
        command = "nablaflow " + " ".join(fit_command(place, site.features))
        rows, taste = site.judging(place).rows(), site.taste(place)
        number = {path.name: at for at, path in enumerate(images_of(place))}
        ranked = [] if taste is None else [(number[n], s) for n, s in taste.best_first()]
        told = {"name": place.name, "rows": len(rows), "fitted": taste is not None}
        kind = {"command": command, "best": ranked[:8], "worst": ranked[-8:][::-1]}
        return pages.TemplateResponse(request, "fit.html", {**told, **kind})

    def preview(request: Request) -> Response:
        place, taste = folder(request), site.taste(folder(request))
        beta = _number(request.query_params.get("beta", "1"))
        if taste is None:
            raise UserError("fit a reward first")
        seen = taste.preview(beta)
        order = seen.weights.argsort(descending=True)[:12].tolist()
        return JSONResponse(
            {
                "share": seen.strength.effective_share,
                "nats": seen.strength.nats,
                "reward": seen.strength.reward_mean,
                "tilted": seen.strength.tilted_reward_mean,
                "diversity": seen.diversity,
                "images": [(at, seen.weights[at].item()) for at in order],
                "command": "nablaflow " + " ".join(align_command(site, place, beta, 60)),
            }
        )

    def job(request: Request) -> Response:
        last = site.jobs.last
        if last is None:
            return JSONResponse({})
        return JSONResponse({"command": last.command, "status": last.status, "log": last.log})

    def change(work: Callable[[Path, dict[str, Any]], dict[str, Any]]) -> Callable[[Request], Any]:
        """A request that changes something: its answer is made in a thread."""

        async def answer(request: Request) -> Response:
            given = await request.json()
            if not isinstance(given, dict):
                raise HTTPException(400)
            place = folder(request) if "folder" in request.path_params else site.root
            return JSONResponse(await run_in_threadpool(work, place, given))

        return answer

    def ask(place: Path, given: dict[str, Any]) -> dict[str, Any]:
        return question(place, _rater(given))

    def answer(place: Path, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("answer") not in ANSWERS or not isinstance(given.get("number"), int):
            raise HTTPException(400)
        site.judging(place).answer(given["number"], given["answer"])
        return question(place, _rater(given))

    def undo(place: Path, given: dict[str, Any]) -> dict[str, Any]:
        undone = site.judging(place).undo(_rater(given))
        return {**question(place, _rater(given)), "undone": undone}

    def fit(place: Path, given: dict[str, Any]) -> dict[str, Any]:
        return {"command": site.fit(place).command}

    def align(place: Path, given: dict[str, Any]) -> dict[str, Any]:
        updates = min(max(_whole(str(given.get("updates", 60))), 1), 10**6)
        return {"command": site.align(place, _number(given.get("beta")), updates).command}

    def stop(place: Path, given: dict[str, Any]) -> dict[str, Any]:
        if site.jobs.running is not None:
            site.jobs.running.stop()
        return {}

    return [
        _get("/rate/{folder}", page),
        _get("/fit/{folder}", fit_page),
        _get("/fit/{folder}/preview", preview),
        _get("/job", job),
        Route("/rate/{folder}/ask", change(ask), methods=["POST"]),
        Route("/rate/{folder}/answer", change(answer), methods=["POST"]),
        Route("/rate/{folder}/undo", change(undo), methods=["POST"]),
        Route("/fit/{folder}/start", change(fit), methods=["POST"]),
        Route("/fit/{folder}/align", change(align), methods=["POST"]),
        Route("/job/stop", change(stop), methods=["POST"]),
    ]


def _rater(given: dict[str, Any]) -> str:
    name = given.get("rater")
    if not isinstance(name, str) or not name.strip() or len(name) > RATER:
        raise UserError(f"rater: a name of at most {RATER} characters, please")
    return name.strip()


def _number(given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 < value <= 1e6:
        raise UserError("beta: must be a number above 0 and at most 1,000,000")
    return value
