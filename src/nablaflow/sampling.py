"""Images from a run's policy or from a model as it is, written to a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console
from rich.progress import Progress

from nablaflow.devices import best_device
from nablaflow.diffusion import SAMPLERS
from nablaflow.diffusion.schedule import other_spacings
from nablaflow.errors import UserError, nearest
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.report.pictures import grid, to_picture
from nablaflow.training.bank import sample_states, spread
from nablaflow.training.checkpoint import list_checkpoints, load_policy_state
from nablaflow.training.config import Config
from nablaflow.training.overrides import load_config
from nablaflow.training.prompts import load_prompts
from nablaflow.training.run_folder import CONFIG
from nablaflow.training.setup import model_source

BATCH = 16


def load_policy(run: Path) -> tuple[PipelineModel, Config]:
    """The policy of a run's last checkpoint, and the run's configuration.

    Raises:
        UserError: the folder holds no checkpoint, or one of another model.
    """
    config = load_config(run / CONFIG, [], {})
    found = list_checkpoints(run)
    if not found:
        raise UserError(f"{run} has no checkpoint yet; train it first")
    pipeline = load_pipeline(model_source(config))
    model = load_model(pipeline, config.sampler, config.adapter, best_device())
    load_policy_state(model.network, found[-1], config.model)
    return model, config


def _model(
    source: str, prompts: list[str], asked: dict[str, Any]
) -> tuple[PipelineModel, list[str]]:
    """A run's policy, or a model as it is; and what to show with it."""
    if (Path(source) / CONFIG).is_file():
        if asked:
            option = {"name": "sampler"}.get(name := next(iter(asked)), name)
            raise UserError(f"--{option}: a run is sampled as it was trained; leave it out")
        model, config = load_policy(Path(source))
        return model, prompts or load_prompts(config.prompts, Path())
    from nablaflow import nano

    pipeline = load_pipeline(str(nano.path()) if source == "nano" else source)
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
    if not isinstance(pipeline, StableDiffusionPipeline):
        return SamplerSettings(steps=100, **settings)
    guidance = 2.0 if source == "nano" else 7.5
    return SamplerSettings(steps=50, guidance_scale=guidance, **settings)


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
    asked: dict[str, Any] | None = None,
) -> list[Path]:
    """Write ``n`` images, prompts in turns, and a sheet of all of them.

    Args:
        source: a run folder, a model folder or hub id, or ``nano``.
        prompts: default: the run's own.
        asked: settings of the sampler for a model as it is: ``name``, ``height``, ``width``.

    Returns:
        Paths of the single images.

    Raises:
        UserError: no such source, no prompts, or images in the way.
    """
    if out.exists() and any(out.glob("*.png")) and not overwrite:
        raise UserError(f"--out: {out} holds images already; use --overwrite or another folder")
    model, texts = _model(source, prompts, asked or {})
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
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (image, which) in enumerate(
        zip(images, spread(n, len(texts)).tolist(), strict=True)
    ):
        words = "-".join("".join(c if c.isalnum() else " " for c in texts[which]).split())[:60]
        path = out / f"{index:04d}-{words or 'image'}.png"
        to_picture(image).save(path)
        paths.append(path)
    grid(images, columns=min(8, n)).save(out / "sheet.png")
    return paths
