"""`nablaflow studio`: look at runs, rate images, fit a reward and align, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nablaflow.commands.shared import Debug, guarded, home


def studio(
    folder: Annotated[
        Path, typer.Argument(callback=home, help="with runs, or images, in it")
    ] = Path("runs"),
    write: Annotated[
        bool, typer.Option("--write", help="allow rating, fitting and aligning")
    ] = False,
    features: Annotated[
        str, typer.Option(help="that a reward is fitted on: clip, dinov2, dreamsim, nano or pixels")
    ] = "nano",
    recipe: Annotated[
        Path | None,
        typer.Option(callback=home, help="that the page aligns with; without it, the demo's"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 0,
    debug: Debug = False,
) -> None:
    """Serve a page on this machine alone; its address, with a secret token, is printed."""

    def work() -> None:
        from nablaflow.studio.serve import check_installed, make_site, serve

        check_installed()
        site = make_site(folder, write=write, features=features, recipe=recipe)
        serve(site, port, lambda address: print(address, flush=True))

    guarded(work, debug)
