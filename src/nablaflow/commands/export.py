"""`nablaflow export`: a run's policy in a format that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nablaflow.commands.shared import AsJson, Debug, Moved, TrustRun, guarded, home, importing


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", callback=home, help="run folder")],
    settings: Moved = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers: a LoRA; kohya: the same by the names of ComfyUI and A1111; merged: a "
            "whole pipeline",
        ),
    ] = "diffusers",
    out: Annotated[
        Path | None,
        typer.Option(
            callback=home, help="folder to write; default: exports/, the names of run and format"
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="of the weights: float32, bfloat16 or float16")
    ] = "float32",
    checkpoint: Annotated[
        str, typer.Option(help="last, best (of the run's guard) or step-N")
    ] = "last",
    strength: Annotated[
        float,
        typer.Option(
            min=0.0, help="of what was trained, in the weights: 0 is the reference, 1 the policy"
        ),
    ] = 1.0,
    ema: Annotated[
        bool,
        typer.Option("--ema", help="the policy's average over the updates (adapter.ema_decay)"),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier export there")
    ] = False,
    trust_run: TrustRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run's policy in a format that other programs read, with a model card."""

    def work() -> None:
        with importing():
            from nablaflow.runs.export import export_run

        given = {"dtype": dtype, "checkpoint": checkpoint, "overwrite": overwrite}
        given |= {"strength": strength, "average": ema, "settings": settings or []}
        exported = export_run(run, form, out, **given, trusted=trust_run)
        if as_json:
            print(json.dumps(exported.as_dict()))
        else:
            what = "the policy's average" if ema else "the policy"
            what += "" if strength == 1 else f" at strength {strength:g}"
            print(f"{what} after update {exported.update} is in {exported.folder}")

    guarded(work, debug)
