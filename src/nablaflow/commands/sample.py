"""`nablaflow sample`: images of a run's policy, or of a model as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nablaflow.commands.shared import AsJson, Debug, Moved, TrustRun, guarded, home, importing
from nablaflow.places import at_home


def sample(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="run folder, or a model")],
    settings: Moved = None,
    prompt: Annotated[list[str] | None, typer.Option(help="again for more prompts")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="images in all")] = 8,
    out: Annotated[Path, typer.Option(callback=home, help="folder for the images")] = Path(
        "samples"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of the noise")] = 0,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="of a run: last, best (of its guard), step-N, or reference; default: last"
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="of what a run trained: 0 is the reference, 1 the policy; above 1 is beyond it"
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="of a model: ddim, ddpm, sde-dpmsolver++ or euler, of flow matching memoryless or "
            "flow-grpo; default: what fits it; of a run of flow matching: euler"
        ),
    ] = None,
    height: Annotated[int | None, typer.Option(min=1, help="of a model's image, pixels")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="of a model's image, pixels")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace images there")] = False,
    trust_run: TrustRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Sample images from a run's policy, or from a model as it is."""

    def work() -> None:
        with importing():
            from nablaflow.config.values import check_text
            from nablaflow.runs.sample import sample_to_folder

        for text in prompt or []:
            check_text("--prompt", text)
        given = {"sampler": sampler, "height": height, "width": width}
        own = {"checkpoint": checkpoint, "strength": strength, "settings": settings or None}
        written = sample_to_folder(
            str(at_home(source)) if source.startswith("~") else source,
            prompt or [],
            n,
            out,
            seed,
            overwrite=overwrite,
            trusted=trust_run,
            of_model={name: value for name, value in given.items() if value is not None},
            of_run={name: value for name, value in own.items() if value is not None},
        )
        if as_json:
            images = [str(path) for path in written.images]
            print(json.dumps({"images": images, "sheet": str(written.sheet)}))
        else:
            print(f"{len(written.images)} images in {out}, all of them on {written.sheet}")

    guarded(work, debug)
