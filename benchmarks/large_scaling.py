"""What an update of a large model costs on 8 to 512 GPUs, by arithmetic: no GPU is needed.

    python benchmarks/large_scaling.py

counts FLOPs on shapes alone, prints tables and writes runs/benchmark-large-scaling.json. The rates
below are assumed, see docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from nablaflow.config.recipe import SHARED_ROLLOUT
from nablaflow.models.costs import (
    DECODES,
    PASSES,
    RECOMPUTED,
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_XL,
    Architecture,
)
from nablaflow.models.flops import counted

RATE = 400e12  # FLOPs a second of a card in bf16: 40 % of an H100's 989; assumed
DECODER_RATE = 45e12  # in float32 with TF32 off: two thirds of an H100's 67; assumed
LINK, NETWORK = 300e9, 40e9  # bytes a second of a ring, in a machine and between; assumed
IN_A_MACHINE = 8
STEPS, TRAINED, TRAJECTORIES = 20, 4, 512
BYTES = 4  # of a gradient's value


class Model(NamedTuple):
    """A model by its size.

    Attributes:
        denoiser: FLOPs of a forward pass at one state.
        decoder: FLOPs of decoding one image.
        parameters: of the denoiser.
        lora: parameters of a LoRA of rank 8 on the layers that get one by default.
        guided: passes that a guided prediction takes.
    """

    denoiser: float
    decoder: float
    parameters: float
    lora: float
    guided: int = 2


def stable_diffusion(architecture: Architecture, parameters: float, lora: float) -> Model:
    denoiser, decoder = architecture.denoiser_flops, architecture.decoder_flops
    return Model(denoiser, decoder, parameters, lora)


def on_shapes(network: Any, **shapes: tuple[int, ...]) -> tuple[int, int]:
    """FLOPs of a forward pass on inputs of these shapes, and the number of parameters."""
    with torch.no_grad(), torch.device("meta"), counted() as counter:
        network(**{name: torch.zeros(shape) for name, shape in shapes.items()})
    return counter.total, sum(value.numel() for value in network.parameters())


def stable_diffusion_3(decoder: float) -> Model:
    """stabilityai/stable-diffusion-3.5-medium, with 77 and 256 tokens."""
    with torch.device("meta"):
        network = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            in_channels=16,
            out_channels=16,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    flops, parameters = on_shapes(
        network,
        hidden_states=(1, 16, 128, 128),
        encoder_hidden_states=(1, 333, 4096),
        pooled_projections=(1, 2048),
        timestep=(1,),
    )
    return Model(flops, decoder, parameters, 6.0e6)


def flux(decoder: float) -> Model:
    """black-forest-labs/FLUX.1-dev, distilled: one pass does what guidance needs two for."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)
    flops, parameters = on_shapes(
        network,
        hidden_states=(1, 4096, 64),
        encoder_hidden_states=(1, 512, 4096),
        pooled_projections=(1, 768),
        timestep=(1,),
        img_ids=(4096, 3),
        txt_ids=(512, 3),
        guidance=(1,),
    )
    return Model(flops, decoder, parameters, 13.1e6, guided=1)


def models() -> dict[str, Model]:
    """By name; all at 1024 pixels have SDXL's decoder."""
    xl = stable_diffusion(STABLE_DIFFUSION_XL, 2567.5e6, 11.6e6)
    return {
        "SD 1.5, 512²": stable_diffusion(STABLE_DIFFUSION_1, 859.5e6, 5.8e6),
        "SDXL, 1024²": xl,
        "SD 3.5 medium, 1024²": stable_diffusion_3(xl.decoder),
        "FLUX.1, 1024²": flux(xl.decoder),
    }


def seconds_of(model: Model, processes: int) -> dict[str, float]:
    """Of one update by the default method, checkpointed, with 512 trajectories on all cards.

    A rollout is shared by some updates; its time is the mean over them.
    """
    each = TRAJECTORIES / processes
    forward, decode = model.guided * model.denoiser / RATE, model.decoder / DECODER_RATE
    link = LINK if processes <= IN_A_MACHINE else NETWORK
    ring = 2 * (processes - 1) / processes * BYTES / link  # seconds a value
    return {
        "rollout": each * (STEPS * forward + decode) / SHARED_ROLLOUT,
        "gradient": each * TRAINED * ((PASSES + RECOMPUTED) * forward + DECODES * decode),
        "LoRA's all-reduce": model.lora * ring,
        "all weights' all-reduce": model.parameters * ring,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-large-scaling.json"))
    given = parser.parse_args()
    found, updates = models(), {}
    print("| model | denoiser, TFLOP | decoder, TFLOP | parameters, M |\n|---|---|---|---|")
    for name, model in found.items():
        sizes = f"{model.denoiser / 1e12:.2f} | {model.decoder / 1e12:.2f}"
        print(f"| {name} | {sizes} | {model.parameters / 1e6:.0f} |")
    print("\n| model | cards | rollout, s | gradient, s | LoRA's reduction, s | all weights', s |")
    print("|---|---|---|---|---|---|")
    for name, model in found.items():
        for processes in (8, 64, 512):
            parts = updates[f"{name}, {processes}"] = seconds_of(model, processes)
            shown = " | ".join(f"{value:.3g}" for value in parts.values())
            print(f"| {name} | {processes} | {shown} |")
    sizes = {name: model._asdict() for name, model in found.items()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"models": sizes, "updates": updates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
