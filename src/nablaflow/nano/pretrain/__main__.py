"""Rebuild the embedded model from scratch; interrupted, the same command goes on.

    python -m nablaflow.nano.pretrain

takes about an hour on 2 cores with bfloat16 instructions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from nablaflow.nano.pretrain.autoencoder import standardize_latents, train_autoencoder
from nablaflow.nano.pretrain.card import write_card
from nablaflow.nano.pretrain.denoiser import train_denoiser
from nablaflow.nano.pretrain.export import export
from nablaflow.nano.pretrain.text import build_tokenizer


def pretrain(
    work: Annotated[Path, typer.Option(help="checkpoints and logs; a second run resumes")] = Path(
        "runs/pretrain"
    ),
    out: Annotated[Path, typer.Option(help="the finished pipeline, in diffusers format")] = Path(
        "runs/nano"
    ),
    autoencoder_steps: Annotated[int, typer.Option(min=1)] = 6000,
    denoiser_steps: Annotated[int, typer.Option(min=1)] = 5000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps")] = "cpu",
    bfloat16: Annotated[bool, typer.Option(help="train under bfloat16 autocast")] = True,
) -> None:
    """Train the autoencoder, then text encoder and denoiser; write the pipeline and its card."""
    work.mkdir(parents=True, exist_ok=True)
    place = torch.device(device)
    autoencoder = train_autoencoder(work, autoencoder_steps, seed, place, bfloat16)
    standardize_latents(autoencoder, seed)
    tokenizer = build_tokenizer()
    networks = train_denoiser(autoencoder, tokenizer, work, denoiser_steps, seed, place, bfloat16)
    export(autoencoder, tokenizer, networks, out)
    write_card(out, seed)


if __name__ == "__main__":
    typer.run(pretrain)
