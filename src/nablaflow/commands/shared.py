"""What every command has: its options, and how a mistake ends it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from nablaflow.errors import ExportError, TrainingStopped, UserError

AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, nothing else")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of a mistake")]


def guarded(work: Callable[[], None], debug: bool) -> None:
    """A mistake becomes one line and status 2; what only the program can be blamed for, a trace."""
    from nablaflow.runs import Interrupted

    try:
        work()
    except (UserError, TrainingStopped, ExportError, Interrupted) as error:
        if debug:
            raise
        print(f"nablaflow: {' '.join(str(error).split())}", file=sys.stderr)
        status = {UserError: 2, Interrupted: 130}.get(type(error), 1)
        raise typer.Exit(status) from None
