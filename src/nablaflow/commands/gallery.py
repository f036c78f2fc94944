"""`nablaflow gallery`: a run's images at each checkpoint and strength, from the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nablaflow.commands.shared import AsJson, Debug, Moved, TrustRun, guarded, home, importing


def gallery(
    run: Annotated[Path, typer.Argument(metavar="RUN", callback=home, help="run folder")],
    settings: Moved = None,
    n: Annotated[int, typer.Option("--n", min=1, help="images of each")] = 16,
    out: Annotated[Path, typer.Option(callback=home, help="folder for the images")] = Path(
        "gallery"
    ),
    strength: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0, help="of the last checkpoint, again for more; default: 0.25 to 1.5 by quarters"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of the noise")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a gallery there")] = False,
    trust_run: TrustRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Sample a run's reference, checkpoints and strengths from the same noise, and score them.

    `nablaflow studio` shows them under two sliders.
    """

    def work() -> None:
        with importing():
            from nablaflow.runs.gallery import STRENGTHS, write_gallery

        strengths = STRENGTHS if strength is None else tuple(dict.fromkeys(strength))
        given = {"strengths": strengths, "seed": seed, "settings": settings or []}
        written = write_gallery(run, out, n, overwrite=overwrite, trusted=trust_run, **given)
        print(json.dumps({"gallery": str(written)}) if as_json else written)

    guarded(work, debug)
