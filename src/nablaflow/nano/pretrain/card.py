"""The model card: where the weights come from and what was measured on them."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from nablaflow.nano.quality import measure

_TEXT = """---
license: apache-2.0
pipeline_tag: text-to-image
library_name: diffusers
---
# nablaflow nano

A latent text-to-image diffusion model in miniature, {parameters:.1f} M parameters, trained from
scratch by

    {command}

on scenes that the same package draws: one object on a grey background, with shape, hue, position,
size and background shade; captions name any subset of these.

- commit {commit}, {machine}, torch {torch}
- images 64x64, latents 8x8x4, DDIM scheduler with Stable Diffusion's betas, epsilon prediction

| figure | value |
|---|---|
{rows}

Named accuracy: share of 1,000 images for "a COLOUR SHAPE" that show both as one clean object. Word
accuracy: share of 250 images for "a circle" and one more word that show it; 0.5 is chance. Free
variation: total variation between the histogram of an attribute that the prompts leave free, over
1,000 images, and the scenes' own. 20 steps, eta 1. All read off the pixels by
`nablaflow.nano.reader`, without a network.
"""


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def _rows(figures: dict[str, Any]) -> str:
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            flat |= {f"{name}: {part}": number for part, number in value.items()}
        else:
            flat[name] = value
    return "\n".join(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in flat.items())


def write_card(folder: Path, seed: int) -> None:
    """Measure the pipeline in ``folder`` in float32; write its README.md and quality.json."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    figures = measure(pipeline)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    text = _TEXT.format(
        parameters=sum(p.numel() for part in parts for p in part.parameters()) / 1e6,
        command="python -m nablaflow.nano.pretrain" + (f" --seed {seed}" if seed else ""),
        commit=_commit(),
        machine=f"{platform.machine()} with {torch.get_num_threads()} threads",
        torch=torch.__version__,
        rows=_rows(figures),
    )
    (folder / "README.md").write_text(text)
    (folder / "quality.json").write_text(json.dumps(figures, indent=2) + "\n")
