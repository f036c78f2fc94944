"""`nablaflow reward`: fit a reward to judged images, score images with any reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nablaflow.commands.named_help import naming
from nablaflow.commands.shared import AsJson, Debug, console, guarded, home, importing
from nablaflow.errors import UserError

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")]

app = typer.Typer(help="Fit a reward to judged images; score images.", no_args_is_help=True)


@app.command(cls=naming({"--features": "features"}))
def fit(
    folder: Annotated[
        Path, typer.Argument(callback=home, help="images with ratings.csv or pairs.csv")
    ],
    features: Annotated[str, typer.Option(help="frozen features that its heads read")] = "clip",
    out: Annotated[Path, typer.Option(callback=home, help="file of the reward")] = Path(
        "reward.safetensors"
    ),
    members: Annotated[int, typer.Option(min=2, max=2**10, help="heads of the ensemble")] = 8,
    hidden: Annotated[
        int, typer.Option(min=0, max=2**14, help="hidden units of a head; 0: linear")
    ] = 0,
    pessimism: Annotated[
        float, typer.Option(min=0.0, help="standard deviations the file's default subtracts")
    ] = 0.0,
    judgements: Annotated[
        Literal["ratings", "pairs"] | None, typer.Option(help="where the folder has both tables")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="folder of the features' weights")] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of folds and heads")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fit a reward to ratings or pairs; write it, its card and a picture of its calibration."""

    def work() -> None:
        with importing():
            from nablaflow.devices import find_device
            from nablaflow.fitting import HeadSettings, check_out, fit_folder, save
            from nablaflow.progress import show
            from nablaflow.report.fit_plot import fit_table, write_fit_plot

        check_out(out, overwrite=overwrite)
        place = find_device(device, "--device")
        with show() as progress:
            found = fit_folder(
                folder,
                features,
                HeadSettings(members=members, hidden=hidden),
                pessimism=pessimism,
                seed=seed,
                kind=judgements,
                weights=weights,
                device=place,
                start=progress.start,
            )
        picture, card = write_fit_plot(out.with_suffix(".png"), found.held_out), save(found, out)
        if as_json:
            print(json.dumps({"reward": str(out), "card": str(card), **found.about}))
            return
        console().print(fit_table(found.about))
        print(f"{out} · {card} · {picture}")

    guarded(work, debug)


@app.command(cls=naming({"--reward": "rewards"}))
def score(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", callback=home, help="folder of images")
    ],
    reward: Annotated[str, typer.Option(help="as in a recipe: a name, a path, a sum")],
    prompt: Annotated[str, typer.Option(help="of all the images, for a reward that reads it")] = "",
    weights: Annotated[
        str | None, typer.Option(help="of the reward, as its setting weights in a recipe")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score a folder of images, best first."""

    def work() -> None:
        with importing():
            from nablaflow.config.values import check_text
            from nablaflow.devices import find_device
            from nablaflow.fitting import score_folder
            from nablaflow.progress import show
            from nablaflow.report.fit_plot import score_table

        check_text("--prompt", prompt)
        place, found = find_device(device, "--device"), _reward(reward, weights)
        with show() as progress:
            rows = score_folder(images, found, prompt, progress.start, device=place)
        if as_json:
            listed = [
                {"image": str(row.image), "score": row.score, "uncertainty": row.uncertainty}
                for row in rows
            ]
            print(json.dumps({"reward": found.name, "images": listed}))
            return
        console().print(score_table([(row.image.name, row.score, row.uncertainty) for row in rows]))

    guarded(work, debug)


def _reward(spec: str, weights: str | None) -> Any:
    """The reward of a spec; with ``weights``, which are a setting, it must be one alone."""
    with importing():
        from nablaflow.rewards import load
        from nablaflow.rewards.combine import parse

    if weights is None:
        return load(spec)
    terms = parse(spec)
    if list(terms.values()) != [1.0]:
        raise UserError(f"--weights: they are one reward's, and {spec!r} is a sum; score one alone")
    return load({"name": next(iter(terms)), "weights": weights})
