"""The model card: where the weights come from and what was measured on them."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from nablaflow.nano.quality import measure

_TEXT = """---
license: apache-2.0
pipeline_tag: text-to-image
library_name: diffusers
---
# {title}

{kind}, {parameters:.1f} M parameters, trained from
scratch by

    {command}

on scenes that the same package draws: one object on a grey background, with shape, hue, position,
size and background shade; captions name any subset of these.

- commit {commit}, {machine}, torch {torch}
- images 64x64, latents 8x8x4, {scheduler}
{notes}
| figure | value |
|---|---|
{rows}

Named accuracy: share of {images:,} images for "a COLOUR SHAPE" that show both as one clean object.
Word accuracy: share of {each_word:,} images for "a circle" and one more word that show it; 0.5 is
chance. Free variation: total variation between the histogram of an attribute that the prompts leave
free, over {images:,} images, and the scenes' own. {sampling}.
All read off the pixels by `nablaflow.nano.reader`, without a network.
"""


@dataclass(frozen=True)
class CardSubject:
    """What the card says of a model besides its figures.

    Attributes:
        arguments: of the command that trains it.
        notes: lines of a list.
        sampling: how the images were sampled that were measured.
        call: of the stock pipeline, besides 20 steps and the guidance: so they are sampled.
    """

    title: str
    kind: str
    arguments: str
    scheduler: str
    sampling: str
    call: dict[str, Any]
    notes: str = ""


DIFFUSION = CardSubject(
    title="nablaflow nano",
    kind="A latent text-to-image diffusion model in miniature",
    arguments="",
    scheduler="DDIM scheduler with Stable Diffusion's betas, epsilon prediction",
    sampling="20 steps, eta 1",
    call={"eta": 1.0},
)
FLOW = CardSubject(
    title="nablaflow nano flow",
    kind="A latent text-to-image flow-matching model in miniature (Stable Diffusion 3's classes)",
    arguments=" --model flow",
    scheduler="flow-matching Euler scheduler, shift 3",
    sampling="20 steps of the scheduler, which adds no noise, max_sequence_length 16",
    call={"max_sequence_length": 16},
    notes="""- the autoencoder is nablaflow nano's, unchanged; all other parts are its own
- its T5 is silent: it gives `max_sequence_length` zero tokens, 256 by default, as the stock class
  does where it is given none; trained with any number from 1 to 256, and faster with few
""",
)


def further(subject: CardSubject, steps: int) -> CardSubject:
    """Of a training of ``steps`` more steps that began from an earlier pipeline of the command."""
    return replace(
        subject,
        arguments=f"{subject.arguments} --start EARLIER --flow-steps {steps}",
        notes=f"{subject.notes}- EARLIER is what the same command without `--start` writes\n",
    )


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def made_with() -> dict[str, str]:
    """What a card says of the code and the machine."""
    return {
        "commit": _commit(),
        "machine": f"{platform.machine()} with {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }


def _rows(figures: dict[str, Any]) -> str:
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            flat |= {f"{name}: {part}": number for part, number in value.items()}
        else:
            flat[name] = value
    return "\n".join(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in flat.items())


def write_card(folder: Path, subject: CardSubject, seed: int, images: int = 1000) -> None:
    """Measure the pipeline in ``folder`` in float32; write its README.md and quality.json.

    Args:
        images: for each figure.
    """
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    figures = measure(pipeline, images, **subject.call)
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    text = _TEXT.format(
        title=subject.title,
        kind=subject.kind,
        scheduler=subject.scheduler,
        notes=subject.notes,
        sampling=subject.sampling,
        images=images,
        each_word=images // 4,
        parameters=sum(p.numel() for part in parts for p in part.parameters()) / 1e6,
        command="python -m nablaflow.nano.pretrain"
        + subject.arguments
        + (f" --seed {seed}" if seed else ""),
        rows=_rows(figures),
        **made_with(),
    )
    (folder / "README.md").write_text(text)
    (folder / "quality.json").write_text(json.dumps(figures, indent=2) + "\n")
