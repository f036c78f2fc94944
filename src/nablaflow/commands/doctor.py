"""`nablaflow doctor`: what this machine has, what will fit on it, and how long that takes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nablaflow.commands.shared import AsJson, Debug, guarded


def doctor(
    model: Annotated[
        str,
        typer.Argument(help="nano, flow, a folder, or a hub id: what the default adapter trains"),
    ] = "nano",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what this machine has, what will fit on it, and what is adapted of a model."""

    def work() -> None:
        from rich.console import Console

        from nablaflow.runs.doctor import examine, table

        found = examine(model)
        print(json.dumps(found)) if as_json else Console().print(table(found))

    guarded(work, debug)
