"""The command line: parse, call, print."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from nablaflow.commands.compare import compare
from nablaflow.commands.evaluate import evaluate
from nablaflow.commands.reward import app as reward_app
from nablaflow.commands.shared import AsJson, Debug, TrustRun, guarded

app = typer.Typer(
    name="nablaflow",
    help="Align diffusion models with rewards; keep their diversity and their prior.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(reward_app, name="reward")
app.command("eval")(evaluate)
app.command()(compare)

KeyValues = Annotated[
    list[str] | None, typer.Argument(metavar="[key.sub=value …]", help="settings to change")
]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the run in output_dir")]


def _run(recipe: Path | None, defaults: dict[str, Any], overrides: list[str], **flags: Any) -> None:
    """Load a configuration, carry it out, print the table or the JSON."""
    from rich.console import Console

    from nablaflow.config.overrides import load_config
    from nablaflow.report import rich_table
    from nablaflow.runs.align import run
    from nablaflow.runs.trust import check_recipe

    as_json = flags.pop("as_json")
    console = Console(stderr=as_json)
    config = load_config(recipe, overrides, defaults)
    check_recipe(recipe, config, overrides, trusted=flags.pop("trusted", False))
    result = run(config, **flags, console=Console(stderr=True))
    if not result.summary:
        return
    if as_json:
        print(json.dumps({"output_dir": str(result.folder), **result.summary}))
        return
    console.print(rich_table(result.summary))
    minutes = result.summary["seconds"] / 60
    what = "LoRA" if result.lora.name == "lora" else "model"
    console.print(f"{result.folder}/report.html · {what} in {result.lora} · {minutes:.1f} minutes")


@app.command()
def demo(
    settings: KeyValues = None,
    reward: Annotated[
        str, typer.Option(help="warmth, or preference: fitted to 200 pairs")
    ] = "warmth",
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Align the embedded model with a reward and write a run folder."""

    def work() -> None:
        from nablaflow.config.defaults import demo_settings

        defaults = demo_settings(reward)
        _run(None, defaults, settings or [], resume=resume, overwrite=overwrite, as_json=as_json)

    guarded(work, debug)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="a YAML file, see recipes/")],
    settings: KeyValues = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    trust_run: TrustRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Carry out a recipe."""
    flags = {"resume": resume, "overwrite": overwrite, "trusted": trust_run, "as_json": as_json}
    guarded(lambda: _run(recipe, {}, settings or [], **flags), debug)


@app.command()
def sample(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="run folder, or a model")],
    prompt: Annotated[list[str] | None, typer.Option(help="again for more prompts")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="images in all")] = 8,
    out: Annotated[Path, typer.Option(help="folder for the images")] = Path("samples"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    sampler: Annotated[
        str | None,
        typer.Option(help="of a model: ddim, ddpm or sde-dpmsolver++; default: what fits it"),
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
        from nablaflow.runs.sample import sample_to_folder

        given = {"name": sampler, "height": height, "width": width}
        asked = {name: value for name, value in given.items() if value is not None}
        paths = sample_to_folder(
            source, prompt or [], n, out, seed, overwrite=overwrite, trusted=trust_run, asked=asked
        )
        if as_json:
            print(json.dumps({"images": [str(path) for path in paths]}))
        else:
            print(f"{len(paths)} images in {out}")

    guarded(work, debug)


@app.command()
def exact(
    problem: Annotated[
        list[str] | None,
        typer.Option(help="again for more, all, or random-7; default: all, or the random ones"),
    ] = None,
    random: Annotated[
        int | None, typer.Option(metavar="N", help="random problems besides, 0 to N - 1")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="again for more, or all; default: this project's and the published form"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs of each, seeds 0 to N - 1")] = 1,
    updates: Annotated[int, typer.Option(help="of each training")] = 300,
    batch: Annotated[int, typer.Option(help="trajectories of an update")] = 256,
    n: Annotated[int, typer.Option("--n", help="samples that are compared")] = 8000,
    steps: Annotated[int, typer.Option(metavar="K", help="of the sampler")] = 50,
    variance: Annotated[
        str, typer.Option(help="of the sampler's kernels: analytic, or posterior as images have")
    ] = "analytic",
    out: Annotated[Path, typer.Option(help="folder for figures and samples")] = Path("runs/exact"),
    workers: Annotated[int | None, typer.Option(help="processes; default: one a core")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace figures of other settings there")
    ] = False,
    plot: Annotated[bool, typer.Option("--plot", help="write pictures to the folder")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train where the exact tilt is known, and measure the distance to it.

    What is in the folder already is not run again.
    """

    def work() -> None:
        from rich.console import Console

        from nablaflow.exact.pool import plan
        from nablaflow.exact.study import LabStudy
        from nablaflow.report.exact_plot import write_plots
        from nablaflow.report.exact_table import exact_table

        numbers = {"seeds": seeds, "updates": updates, "batch": batch, "n": n, "steps": steps}
        study = LabStudy.named(
            problem or [], method or [], out, random, variance=variance, **numbers
        )
        rows = _under_a_bar(plan(study, workers=workers, overwrite=overwrite))
        pictures = write_plots(out, rows, study.samples) if plot else []
        if as_json:
            print(json.dumps({"rows": rows}))
            return
        Console().print(exact_table(rows))
        for picture in pictures:
            print(picture)

    guarded(work, debug)


def _under_a_bar(plan: Any) -> list[dict[str, Any]]:
    """Carry out what is left of a study; the bar counts the updates of all of it."""
    from rich.console import Console

    from nablaflow.runs.progress import progress_display
    from nablaflow.runs.stopping import Interrupted

    study, cells = plan.study, len(plan.study.cells)
    before = (cells - len(plan.cells)) * study.updates
    try:
        with progress_display(Console(stderr=True)) as progress:
            task = progress.add_task("exact", total=cells * study.updates, completed=before)
            return plan.run(
                lambda done: progress.update(task, completed=before + done),
                lambda cell: progress.update(task, description=f"{cell.short(30)} done"),
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; {study.done()} of {cells} cells are done; the same command goes on"
        ) from None


@app.command()
def doctor(
    model: Annotated[
        str, typer.Argument(help="nano, a folder, or a hub id: what the default adapter trains")
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


def _quiet_libraries() -> None:
    """Keep the libraries' notes on their own optional parts off the user's screen."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def main() -> None:
    """Entry point of the command ``nablaflow``."""
    _quiet_libraries()
    app()


if __name__ == "__main__":
    main()
