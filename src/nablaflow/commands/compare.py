"""`nablaflow compare`: methods for the same time, or runs that exist, to a table and pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

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
from nablaflow.errors import UserError
from nablaflow.places import at_home

Several = list[str] | None


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN …]",
            help="run folders, instead of methods; reward=… in place of theirs; model=…, "
            "model_lora=…, where theirs are now",
        ),
    ] = None,
    method: Annotated[
        Several,
        typer.Option(
            "--method",
            "--methods",
            help="names with commas, or again for more; or all; default: a few",
        ),
    ] = None,
    reward: Annotated[
        Several,
        typer.Option(
            "--reward", "--rewards", help="names with commas, or again for more; default: warmth"
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="runs of each; default: 3")] = None,
    minutes: Annotated[float | None, typer.Option(help="of training, each; default: 2")] = None,
    beta: Annotated[
        float | None, typer.Option(help="the tilt; default: where a third of the bank counts")
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", help="images that are measured; default: 256, of runs theirs"),
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="a reward to measure only; default: is the shape shown")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="further figures, as eval has them")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="each method besides at the strength that has the exact tilt's mean reward",
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(callback=home, help="folder for runs, figures, pictures")
    ] = Path("runs/comparison"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace figures of other settings there")
    ] = False,
    trust_run: TrustRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train methods for the same time, or take runs, and hold them against the exact tilt.

    What is in the folder already is not run again.
    """

    def work() -> None:
        with importing():
            from nablaflow.comparison import compare_asked

        given = {"seeds": seeds, "minutes": minutes, "beta": beta, "calibrate": calibrate or None}
        folders, changed = _parted(runs or [])
        outcomes = compare_asked(
            folders,
            listed("--method", method),
            listed("--reward", reward),
            out,
            training={name: value for name, value in given.items() if value is not None},
            n=n,
            held_out=held_out,
            metrics=listed("--metrics", metrics),
            settings=changed,
            overwrite=overwrite,
            trusted=trust_run,
        )
        _show(outcomes, out, as_json)

    guarded(work, debug)


def _parted(given: list[str]) -> tuple[list[Path], list[str]]:
    """Runs; ``reward=…`` in place of theirs, ``model=…`` or ``model_lora=…`` where theirs are."""
    settings = [text for text in given if re.match(r"(reward(\.\w+)*|model|model_lora)=", text)]
    runs = [at_home(text) for text in given if text not in settings]
    if settings and not runs:
        name = settings[0].partition("=")[0]
        remedy = "with --method it is --reward" if name.startswith("reward") else "leave it out"
        raise UserError(f"compare: {name}=… goes with runs; {remedy}")
    return runs, settings


def _show(outcomes: list[Any], out: Path, as_json: bool) -> None:
    """Write each to the folder; print the tables, or all rows."""
    from nablaflow.comparison.writing import write_outcome
    from nablaflow.report.comparison_table import comparison_table

    pictures = [write_outcome(out, outcome) for outcome in outcomes]
    if as_json:
        print(json.dumps({"rows": [row for outcome in outcomes for row in outcome.rows()]}))
        return
    for outcome, picture in zip(outcomes, pictures, strict=True):
        title = f"{outcome.reward}, beta {outcome.beta:g}"
        console().print(comparison_table(title, outcome.rows()))
        print(picture)
