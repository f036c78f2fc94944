"""`nablaflow train` and `nablaflow demo`: a run from a recipe, and the embedded model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nablaflow.commands.shared import (
    AsJson,
    Debug,
    KeyValues,
    TrustRun,
    console,
    guarded,
    home,
    importing,
)

Resume = Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the run in output_dir")]


def demo(
    settings: KeyValues = None,
    reward: Annotated[
        str, typer.Option(help="warmth, or preference: fitted to 200 pairs")
    ] = "warmth",
    model: Annotated[
        str, typer.Option(help="nano, a diffusion model, or flow, of flow matching")
    ] = "nano",
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Align an embedded model with a reward and write a run folder."""

    def work() -> None:
        with importing():
            from nablaflow.config.defaults import demo_settings

        defaults = demo_settings(reward, model)
        _run(None, defaults, settings or [], resume=resume, overwrite=overwrite, as_json=as_json)

    guarded(work, debug)


def train(
    recipe: Annotated[Path, typer.Argument(callback=home, help="a YAML file, see recipes/")],
    settings: KeyValues = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    trust_run: TrustRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a model from a recipe."""
    flags = {"resume": resume, "overwrite": overwrite, "trusted": trust_run, "as_json": as_json}
    guarded(lambda: _run(recipe, {}, settings or [], **flags), debug)


def _run(recipe: Path | None, defaults: dict[str, Any], overrides: list[str], **flags: Any) -> None:
    """Load a configuration, carry it out, print the table or the JSON."""
    with importing():
        from nablaflow.config.overrides import load_config
        from nablaflow.report.table import rich_table
        from nablaflow.runs.align import run
        from nablaflow.runs.trust import check_goes_on_here, check_recipe, methods_of_recipe

    as_json = flags.pop("as_json")
    shown = console(stderr=as_json)
    trusted = flags.pop("trusted", False)
    find = methods_of_recipe(recipe, trusted=trusted)
    config = load_config(recipe, overrides, defaults, find)
    check_recipe(recipe, config, overrides, trusted=trusted)
    if flags["resume"]:
        check_goes_on_here(recipe, config, overrides)
    result = run(config, **flags, console=console(stderr=True))
    if not result.summary:
        return
    if as_json:
        print(json.dumps({"output_dir": str(result.folder), **result.summary}))
        return
    shown.print(rich_table(result.summary))
    minutes = result.summary["seconds"] / 60
    what = "LoRA" if result.lora.name == "lora" else "model"
    shown.print(
        f"{result.folder}/report.html · {what} in {result.lora} · {minutes:.1f} minutes",
        soft_wrap=True,
    )
