"""`nablaflow eval`: a run measured again."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nablaflow.commands.shared import (
    AsJson,
    Debug,
    TrustRun,
    console,
    guarded,
    home,
    importing,
    listed,
)


class Checkpoints(str, Enum):
    """Which checkpoints of a run are measured."""

    all = "all"
    last = "last"


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", callback=home, help="run folder")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[reward=… model=… model_lora=…]",
            help="a reward in place of the run's; where its model and model_lora are now",
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=2, help="images of each model; default: the run's")
    ] = None,
    features: Annotated[str, typer.Option(help="what images are compared by")] = "pixels",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "--metrics",
            help="names with commas, or again for more; default: what needs no more than features",
        ),
    ] = None,
    checkpoints: Annotated[Checkpoints, typer.Option(help="which to measure")] = Checkpoints.all,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            help="of what the last checkpoint has trained, measured besides, again for more: 0 is "
            "the reference, 1 the policy",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="in place of the run's own: a .txt, .csv or .jsonl, a set, hub:owner/name, or "
            "'{source: a.csv, column: caption}' as in a recipe"
        ),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="curves over training, to the run's folder or to --out")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(callback=home, help="folder for the curves; implies --plot")
    ] = None,
    trust_run: TrustRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a run again: reward, diversity, prior, distance to the tilt, over its checkpoints."""

    def work() -> None:
        with importing():
            from nablaflow.report.protocol import protocol_table
            from nablaflow.report.strengths import strength_table
            from nablaflow.report.table import rich_table
            from nablaflow.runs.evaluate import (
                check_curves,
                evaluate_run,
                given_prompts,
                write_curves,
            )

        if plot or out:
            check_curves(folder, out)
        summary = evaluate_run(
            folder,
            n,
            features=features,
            metrics=listed("--metric", metric) or None,
            only_last=checkpoints is Checkpoints.last,
            strengths=strength or (),
            prompts=None if prompts is None else given_prompts(prompts),
            settings=settings or [],
            trusted=trust_run,
        )
        if not summary:  # of a process that is not the main one
            return
        picture = write_curves(summary["protocol"], out or folder) if plot or out else None
        if as_json:
            print(json.dumps(summary))
            return
        shown = console()
        tables = [rich_table(summary), "", protocol_table(summary["protocol"])]
        tables += ["", strength_table(summary["strengths"])] if strength else []
        for table in tables:
            shown.print(table)
        if picture is not None:
            print(picture)

    guarded(work, debug)
