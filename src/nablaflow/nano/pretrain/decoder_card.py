"""The small decoder's card: where it comes from, and how near it is on scenes it has not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from nablaflow.nano.pretrain.card import made_with
from nablaflow.nano.pretrain.small_decoder import (
    embedded_pipeline,
    make_lessons,
    sizes_of_changes,
)

PAIRS = 200
SEED = 1000
"""Of the scenes that it is measured on, apart from those of trainings."""

_TEXT = """---
license: apache-2.0
library_name: diffusers
---
# nablaflow nano, small decoder

An `AutoencoderTiny` for the latents of the embedded models, of {parameters:,} parameters, which
`training.decoder: tiny` takes rewards' gradients through. Distilled from their autoencoder by

    python -m nablaflow.nano.pretrain --model decoder{seed}

on images of the embedded diffusion model's x0_hat at any noise, and on how they change by a small
step of the latents. Its encoder is untrained and of no use.

- commit {commit}, {machine}, torch {torch}

| figure | value |
|---|---|
| peak signal to noise ratio of its images to the full decoder's, dB | {psnr:.1f} |
{rows}

On {pairs} pairs of latents that it has not seen. The error of a change, of squares of so many
pixels, is its mean square over the change's, the median of the pairs: 1 is what an image that
does not change has.
"""


@torch.no_grad()
def measure_decoder(decoder: Any, pairs: int = PAIRS) -> dict[str, Any]:
    """Figures on latents that no training of the command has seen."""
    generator = torch.Generator().manual_seed(SEED)
    lessons = make_lessons(embedded_pipeline(torch.device("cpu")), pairs, generator)
    wanted = lessons["images"].float()
    parts = lessons["latents"].flatten(0, 1).split(100)
    images = torch.cat([decoder.decode(part, return_dict=False)[0] for part in parts])
    errors = images.unflatten(0, (-1, 2)).clamp(-1, 1) - wanted.clamp(-1, 1)
    return {"psnr": _psnr(errors), "error_of_changes": _relative(errors, wanted)}


def _psnr(errors: Tensor) -> float:
    """Of pixels in [-1, 1], dB."""
    return float(10.0 * torch.log10(4.0 / errors.square().mean()))


def _relative(errors: Tensor, wanted: Tensor) -> dict[str, float]:
    """Medians over the pairs, by the side of a square, pixels."""
    shares = (sizes_of_changes(errors) / sizes_of_changes(wanted)).median(1).values
    return {str(2**level): share for level, share in enumerate(shares.tolist())}


def write_decoder_card(folder: Path, seed: int, pairs: int = PAIRS) -> None:
    """Measure the decoder in ``folder``; write its README.md and quality.json."""
    decoder: Any = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32)
    figures = measure_decoder(decoder, pairs)
    text = _TEXT.format(
        parameters=sum(part.numel() for part in decoder.decoder.parameters()),
        seed=f" --seed {seed}" if seed else "",
        psnr=figures["psnr"],
        rows="\n".join(
            f"| error of a change, squares of {side} | {value:.3f} |"
            for side, value in figures["error_of_changes"].items()
        ),
        pairs=pairs,
        **made_with(),
    )
    (folder / "README.md").write_text(text)
    (folder / "quality.json").write_text(json.dumps(figures, indent=2) + "\n")
