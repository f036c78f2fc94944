"""`nablaflow doctor`: what this machine has, what will fit on it, and how long that takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nablaflow.commands.shared import (
    AsJson,
    Debug,
    KeyValues,
    TrustRun,
    console,
    guarded,
    importing,
)
from nablaflow.places import at_home


def doctor(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RECIPE.yaml",
            help="nano, flow, a folder, or a hub id: what the default adapter trains; or a recipe: "
            "the plan of its memory",
        ),
    ] = "nano",
    settings: KeyValues = None,
    elsewhere: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="DEVICE",
            help="plan a recipe for cuda, mps or cpu, here or not; default: its training.device",
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(help="GB (2^30 bytes) of the device that is planned for; default: as here"),
    ] = None,
    trust_run: TrustRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what this machine has, what will fit on it, and what a model or a recipe asks of it."""

    def work() -> None:
        if Path(model).suffix in (".yaml", ".yml"):
            with importing():
                from nablaflow.runs.doctor_recipe import plan_of_recipe, plan_table

            found = plan_of_recipe(
                at_home(model),
                settings or [],
                trusted=trust_run,
                elsewhere=elsewhere,
                memory=memory,
            )
            shown = plan_table
        else:
            with importing():
                from nablaflow.runs.doctor import examine, refuse_settings, table

            given = {"--for": elsewhere, "--memory": memory}
            refuse_settings(settings or [], [name for name, of in given.items() if of is not None])
            found, shown = examine(model), table
        print(json.dumps(found)) if as_json else console().print(shown(found))

    guarded(work, debug)
