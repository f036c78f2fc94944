"""`nablaflow exact`: methods where the exact tilt is known, to a table and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nablaflow.commands.shared import AsJson, Debug, console, guarded, home, importing, listed


def exact(
    problem: Annotated[
        list[str] | None,
        typer.Option(
            "--problem",
            "--problems",
            help="names with commas, or again for more; all, or random-7; default: all, or the "
            "random ones",
        ),
    ] = None,
    random: Annotated[
        int | None, typer.Option(metavar="N", help="random problems besides, 0 to N - 1")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            help="names with commas, or again for more; or all that the sampler suits; default: "
            "this project's and the published form",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs of each, seeds 0 to N - 1")] = 1,
    updates: Annotated[int, typer.Option(help="of each training")] = 300,
    batch: Annotated[int, typer.Option(help="trajectories of an update")] = 256,
    n: Annotated[int, typer.Option("--n", help="samples that are compared")] = 8000,
    steps: Annotated[int, typer.Option(metavar="K", help="of the sampler")] = 50,
    process: Annotated[
        str, typer.Option(help="how it noises: diffusion, or flow (matching)")
    ] = "diffusion",
    sampler: Annotated[
        str | None,
        typer.Option(
            help="of diffusion ddim or euler; of flow memoryless, flow-grpo or euler; default: the "
            "first"
        ),
    ] = None,
    variance: Annotated[
        str | None,
        typer.Option(
            help="of ddim's and memoryless kernels: analytic, or posterior as images have; "
            "default: analytic"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(callback=home, help="folder for figures and samples")] = Path(
        "runs/exact"
    ),
    workers: Annotated[int | None, typer.Option(help="processes; default: one a core")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace figures of other settings there")
    ] = False,
    plot: Annotated[bool, typer.Option("--plot", help="write pictures to the folder")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train where the exact tilt is known, and measure the distance to it.

    What is in the folder already is not run again.
    """

    def work() -> None:
        with importing():
            from nablaflow.exact.pool import plan
            from nablaflow.exact.study import LabStudy
            from nablaflow.report.exact_plot import write_plots
            from nablaflow.report.exact_table import exact_table

        numbers = {"seeds": seeds, "updates": updates, "batch": batch, "n": n, "steps": steps}
        names = {"process": process, "sampler": sampler, "variance": variance}
        wanted = listed("--problem", problem), listed("--method", method)
        study = LabStudy.named(*wanted, out, random, **names, **numbers)
        rows = _shown(plan(study, workers=workers, overwrite=overwrite))
        pictures = write_plots(out, rows, study.samples) if plot else []
        if as_json:
            print(json.dumps({"rows": rows}))
            return
        console().print(exact_table(rows))
        for picture in pictures:
            print(picture)

    guarded(work, debug)


def _shown(plan: Any) -> list[dict[str, Any]]:
    """Carry out what is left of a study; what is shown counts the updates of all of it."""
    from nablaflow.progress import show
    from nablaflow.runs.stopping import Interrupted

    study, cells = plan.study, len(plan.study.cells)
    before = (cells - len(plan.cells)) * study.updates
    try:
        with show() as progress:
            work = progress.start("exact, updates", cells * study.updates, done=before)
            return plan.run(
                lambda done: work.reach(before + done, work.note),
                lambda cell: work.reach(work.done, f"{cell.short(30)} done"),
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; {study.done()} of {cells} cells are done; the same command goes on"
        ) from None
