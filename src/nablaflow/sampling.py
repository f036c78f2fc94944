"""Images from a run's policy or from a model as it is, written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console
from rich.progress import Progress

from nablaflow.devices import best_device
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.report.pictures import grid, to_picture
from nablaflow.training.bank import sample_states, spread
from nablaflow.training.checkpoint import list_checkpoints, load_policy_state
from nablaflow.training.config import Config
from nablaflow.training.kernels import load_kernels
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
    pipeline = load_pipeline(model_source(config.model))
    model = load_model(pipeline, config.sampler, config.adapter, best_device())
    load_policy_state(model.network, found[-1], config.model)
    if config.sampler.variance == "analytic":
        load_kernels(model, found[-1])
    return model, config


def _model(source: str, prompts: list[str]) -> tuple[PipelineModel, list[str]]:
    """A run's policy, or a model as it is; and what to show with it."""
    if (Path(source) / CONFIG).is_file():
        model, config = load_policy(Path(source))
        return model, prompts or load_prompts(config.prompts, Path())
    pipeline = load_pipeline(model_source(source))
    model = load_model(pipeline, _sampler(pipeline, source), AdapterSettings(), best_device())
    return model, prompts or ["a circle" if source == "nano" else ""]


def _sampler(pipeline: Any, source: str) -> SamplerSettings:
    """What the pipeline's own call would do, but for the kind of sampler."""
    if not isinstance(pipeline, StableDiffusionPipeline):
        return SamplerSettings(steps=100)
    return SamplerSettings(steps=50, guidance_scale=2.0 if source == "nano" else 7.5)


@torch.no_grad()
def sample_to_folder(
    source: str, prompts: list[str], n: int, out: Path, seed: int, *, overwrite: bool
) -> list[Path]:
    """Write ``n`` images, prompts in turns, and a sheet of all of them.

    Args:
        source: a run folder, a model folder or hub id, or ``nano``.
        prompts: default: the run's own.

    Returns:
        Paths of the single images.

    Raises:
        UserError: no such source, no prompts, or images in the way.
    """
    if out.exists() and any(out.glob("*.png")) and not overwrite:
        raise UserError(f"--out: {out} holds images already; use --overwrite or another folder")
    model, texts = _model(source, prompts)
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
