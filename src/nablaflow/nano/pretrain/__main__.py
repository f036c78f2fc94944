"""Rebuild an embedded model; interrupted, the same command goes on.

    python -m nablaflow.nano.pretrain                 # the diffusion model, from scratch
    python -m nablaflow.nano.pretrain --model flow    # the flow-matching one, on its autoencoder
    python -m nablaflow.nano.pretrain --model decoder # the small decoder for gradients, of both

takes about an hour each on 2 cores with bfloat16 instructions, and the decoder some minutes.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.nano.pretrain.autoencoder import standardize_latents, train_autoencoder
from nablaflow.nano.pretrain.card import DIFFUSION, FLOW, further, write_card
from nablaflow.nano.pretrain.decoder_card import write_decoder_card
from nablaflow.nano.pretrain.denoiser import train_denoiser
from nablaflow.nano.pretrain.export import export, export_decoder, export_flow
from nablaflow.nano.pretrain.small_decoder import train_small_decoder
from nablaflow.nano.pretrain.stage import claim
from nablaflow.nano.pretrain.text import build_tokenizer
from nablaflow.nano.pretrain.velocity import (
    NETWORK_FILES,
    TextToVelocity,
    load_networks,
    train_flow,
)
from nablaflow.storage.checksums import of_file


class Embedded(str, Enum):
    nano = "nano"
    flow = "flow"
    decoder = "decoder"


def pretrain(
    model: Annotated[
        Embedded,
        typer.Option(help="flow and decoder take the autoencoder of the nano that is there"),
    ] = Embedded.nano,
    work: Annotated[Path, typer.Option(help="checkpoints and logs; a second run resumes")] = Path(
        "runs/pretrain"
    ),
    out: Annotated[
        Path | None,
        typer.Option(help="the finished pipeline, in diffusers format; default: runs/MODEL"),
    ] = None,
    autoencoder_steps: Annotated[int, typer.Option(min=1, help="of nano")] = 6000,
    denoiser_steps: Annotated[int, typer.Option(min=1, help="of nano")] = 5000,
    flow_steps: Annotated[int, typer.Option(min=1, help="of flow")] = 9000,
    start: Annotated[
        Path | None, typer.Option(help="a flow pipeline of this command's to train further")
    ] = None,
    decoder_steps: Annotated[int, typer.Option(min=1, help="of decoder")] = 7000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    images: Annotated[int, typer.Option(min=8, help="for each figure of the card")] = 1000,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps")] = "cpu",
    bfloat16: Annotated[
        bool, typer.Option(help="train under bfloat16 autocast; not decoder")
    ] = True,
) -> None:
    """Train a model, write its pipeline and its card."""
    check_start(model, start)
    work.mkdir(parents=True, exist_ok=True)
    begun = {"seed": seed, "bfloat16": bfloat16}
    if model == Embedded.decoder:
        begun = {"seed": seed, "steps": decoder_steps}
    elif model == Embedded.flow:
        begun |= {"steps": flow_steps, "start": start and of_file(start / NETWORK_FILES[0])}
    else:
        begun |= {"autoencoder_steps": autoencoder_steps, "denoiser_steps": denoiser_steps}
    claim(work, model.value, begun)
    out = out or Path("runs") / model.value
    place = torch.device(device)
    if model == Embedded.decoder:
        export_decoder(train_small_decoder(work, decoder_steps, seed, place), out)
        write_decoder_card(out, seed)
        return
    tokenizer = build_tokenizer()
    if model == Embedded.flow:
        vae = shipped_autoencoder(place)
        flow = train_flow(vae, tokenizer, work, flow_steps, seed, place, bfloat16, start)
        export_flow(vae, tokenizer, flow, out)
        write_card(out, FLOW if start is None else further(FLOW, flow_steps), seed, images)
        return
    autoencoder = train_autoencoder(work, autoencoder_steps, seed, place, bfloat16)
    standardize_latents(autoencoder, seed)
    networks = train_denoiser(autoencoder, tokenizer, work, denoiser_steps, seed, place, bfloat16)
    export(autoencoder, tokenizer, networks, out)
    write_card(out, DIFFUSION, seed, images)


def check_start(model: Embedded, start: Path | None) -> None:
    """Stop before any work where ``--start`` cannot be what the training begins from.

    Raises:
        UserError: it cannot.
    """
    if start is None:
        return
    if model != Embedded.flow:
        raise UserError("--start is of --model flow; nano is trained from scratch")
    try:
        load_networks(TextToVelocity(build_tokenizer()), start)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--start {start}: {reason}; name what --model flow wrote") from error


def shipped_autoencoder(device: torch.device) -> AutoencoderKL:
    """The embedded diffusion model's, in float32."""
    folder = nano.path()
    found: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    return found.to(device).eval().requires_grad_(False)


if __name__ == "__main__":
    try:
        typer.run(pretrain)
    except UserError as error:
        print(f"nablaflow: {error}", file=sys.stderr)
        sys.exit(2)
