"""Images from a run's policy or from a model as it is, written to a folder."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from nablaflow.config.recipe import Config
from nablaflow.devices import best_device
from nablaflow.diffusion import SAMPLERS
from nablaflow.diffusion.schedule import other_spacings
from nablaflow.errors import UserError, nearest
from nablaflow.evaluation.bank import sample_states, spread
from nablaflow.evaluation.policy_state import put_policy
from nablaflow.models import (
    AdapterSettings,
    SamplerSettings,
    family_of,
    load_model,
    load_pipeline,
    model_source,
)
from nablaflow.models.pipelines import PipelineModel
from nablaflow.prompts.sets import load_prompts
from nablaflow.report.pictures import grid, save_picture, to_picture
from nablaflow.runs.checks import check_count, image_bytes
from nablaflow.runs.folder import load_run_config
from nablaflow.runs.trust import check_trusted
from nablaflow.storage.checkpoint import load_policy as read_policy
from nablaflow.storage.lock import is_run
from nablaflow.storage.run_folder import CONFIG
from nablaflow.storage.whole import last_whole
from nablaflow.training.kernels import load_kernels
from nablaflow.typing import Images

BATCH = 16


def load_policy(
    run: Path, parts: Collection[str] = ("model", "prompts"), *, trusted: bool = False
) -> tuple[PipelineModel, Config]:
    """The policy of a run's last checkpoint, and the run's configuration.

    Args:
        parts: groups of the configuration that will be used.
        trusted: whether the user's word is given for what they ask for.

    Raises:
        UserError: the folder holds no checkpoint, or one of another model.
    """
    config = load_run_config(run)
    check_trusted(config, run, parts, trusted=trusted)
    folder, state = last_whole(run, lambda found: (found, read_policy(found)))
    pipeline = load_pipeline(model_source(config.model))
    model = load_model(pipeline, config.sampler, config.adapter, best_device())
    put_policy(model.network, state, folder, config.model)
    if config.sampler.variance == "analytic":
        load_kernels(model, folder)
    return model, config


def _model(
    source: str, prompts: list[str], asked: dict[str, Any], *, trusted: bool
) -> tuple[PipelineModel, list[str]]:
    """A run's policy, or a model as it is; and what to show with it."""
    if is_run(Path(source)) or (Path(source) / CONFIG).is_file():
        if asked:
            option = {"name": "sampler"}.get(name := next(iter(asked)), name)
            raise UserError(f"--{option}: a run is sampled as it was trained; leave it out")
        parts = ("model",) if prompts else ("model", "prompts")
        model, config = load_policy(Path(source), parts, trusted=trusted)
        return model, prompts or load_prompts(config.prompts, Path())
    pipeline = load_pipeline(model_source(source))
    sampler = _sampler(pipeline, source, asked)
    model = load_model(pipeline, sampler, AdapterSettings(), best_device())
    return model, prompts or ["a circle" if source == "nano" else ""]


def _sampler(pipeline: Any, source: str, asked: dict[str, Any]) -> SamplerSettings:
    """What the pipeline's own call would do, but for the kind of sampler, which is said.

    Raises:
        UserError: there is no sampler of the name that is asked for.
    """
    name = asked.get("name")
    if name is not None and name not in SAMPLERS:
        raise UserError(f"--sampler: unknown sampler {name!r}; {nearest(name, SAMPLERS)}")
    settings: dict[str, Any] = {"name": name or _fitting(pipeline)} | asked
    if source == "nano":
        settings = {"guidance_scale": 2.0} | settings
    return SamplerSettings(**family_of(pipeline).call_defaults | settings)


def _fitting(pipeline: Any) -> str:
    """A sampler for the folder's scheduler, with its own noise levels or, if need be, even ones.

    Nothing is trained here, so that other levels change the image and no claim.
    """
    scheduler = pipeline.scheduler
    spacings = other_spacings(scheduler.config)
    if spacings:
        scheduler.register_to_config(**dict.fromkeys(spacings, False))
        _say(f"the scheduler's {spacings[0]} is left out; its timesteps are evenly spaced here")
    if scheduler.config.get("timestep_spacing") != "linspace":
        return "ddim"
    _say("sampled with sde-dpmsolver++, since ddim does not fit timesteps spaced linspace")
    return "sde-dpmsolver++"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


@torch.no_grad()
def sample_to_folder(
    source: str,
    prompts: list[str],
    n: int,
    out: Path,
    seed: int,
    *,
    overwrite: bool,
    trusted: bool = False,
    asked: dict[str, Any] | None = None,
) -> list[Path]:
    """Write ``n`` images, prompts in turns, and a sheet of all of them.

    Args:
        source: a run folder, a model folder or hub id, or ``nano``.
        prompts: default: the run's own.
        trusted: whether the user's word is given for what a run asks for.
        asked: settings of the sampler for a model as it is: ``name``, ``height``, ``width``.

    Returns:
        Paths of the single images.

    Raises:
        UserError: no such source, no prompts, or images in the way.
    """
    _check_out(out, overwrite=overwrite)
    model, texts = _model(source, prompts, asked or {}, trusted=trusted)
    check_count("--n", n, 2 * image_bytes(model))
    note = model.note_on(texts)
    if note is not None:
        _say(note)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("sample", total=n)
        states = sample_states(
            model,
            texts,
            n,
            seed=seed,
            batch=BATCH,
            purpose="sample",
            on_progress=lambda done: progress.advance(task, done),
        )
    parts = states.to(model.device).split(BATCH)
    images = torch.cat([model.decode(part).cpu() for part in parts])
    prompts = [texts[which] for which in spread(n, len(texts)).tolist()]
    try:
        return _write(images, prompts, out)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out} ({error.strerror})") from error


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Find out before the work whether images can be written there."""
    try:
        there = out.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out: no folder can have this name ({reason})") from None
    if there and not out.is_dir():
        raise UserError(f"--out: {out} is a file; give a folder")
    if there and any(out.glob("*.png")) and not overwrite:
        raise UserError(f"--out: {out} holds images already; use --overwrite or another folder")


def _write(images: Images, prompts: list[str], out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        words = "-".join("".join(c if c.isalnum() else " " for c in prompt).split())[:60]
        paths.append(out / f"{index:04d}-{words or 'image'}.png")
        save_picture(to_picture(image), paths[-1])
    save_picture(grid(images, columns=min(8, len(images))), out / "sheet.png")
    return paths
