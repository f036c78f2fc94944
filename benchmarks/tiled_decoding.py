"""A reward's gradient through the decoder in overlapping tiles, beside the one through all at once.

    python benchmarks/tiled_decoding.py

takes diffusers' own tiles (`AutoencoderKL.tiled_decode`), of half the image's side, overlapping by
a quarter, as they are and with each tile computed again in the backward pass. It prints how far
image and gradient are from those of the whole, for Stable Diffusion's decoder with random weights
and for the embedded model's, which is trained; and the peak of tensors, on shapes alone, of Stable
Diffusion's at 512 x 512 and of its larger sister's at 1024 x 1024, beside gradient checkpointing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from decoders import STABLE_DIFFUSION, states
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nablaflow import nano
from nablaflow.models.decoding import in_units_of
from nablaflow.rewards import load
from nablaflow.shapes import META, Shapes

MIB = 2**20
Decode = Callable[[Tensor], Tensor]


def ways(decoder: Any, side: int) -> dict[str, Decode]:
    """By name, of latents (batch, channel, side, side) in the decoder's own units."""
    decoder.tile_latent_min_size = side // 2
    decoder.tile_sample_min_size = side // 2 * 2 ** (len(decoder.config["block_out_channels"]) - 1)
    plain = decoder.decoder.forward

    def again(latents: Tensor) -> Tensor:
        decoder.decoder.forward = lambda tile, *given: checkpoint(
            plain, tile, *given, use_reentrant=False
        )
        try:
            return decoder.tiled_decode(latents).sample
        finally:
            decoder.decoder.forward = plain

    def by_blocks(latents: Tensor) -> Tensor:
        decoder.train()
        decoder.enable_gradient_checkpointing()
        try:
            return decoder.decode(latents).sample
        finally:
            decoder.disable_gradient_checkpointing()

    return {
        "whole": lambda latents: decoder.decode(latents).sample,
        "tiles": lambda latents: decoder.tiled_decode(latents).sample,
        "tiles, each computed again": again,
        "whole, gradient checkpointing": by_blocks,
    }


def gradients(decoder: Any, x0: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The image and the reward's gradient by the state, each way."""
    reward, found = load("warmth"), {}
    for name, decode in ways(decoder, x0.shape[-1]).items():
        leaf = x0.clone().requires_grad_()
        image = (decode(in_units_of(decoder, leaf)) / 2 + 0.5).clamp(0, 1)
        reward(image, ["a circle"] * len(image)).sum().backward()
        assert leaf.grad is not None
        found[name] = (image.detach(), leaf.grad)
    return found


def peaks(settings: dict[str, Any], side: int) -> dict[str, float]:
    """Peak of tensors in MiB of one row's gradient, each way, on shapes alone."""
    with torch.device(META):
        decoder: Any = AutoencoderKL(**settings).requires_grad_(False)
    found = {}
    for name, decode in ways(decoder, side).items():
        with Shapes() as shapes:
            leaf = torch.zeros(1, 4, side, side, device=META, requires_grad=True)
            decode(leaf).sum().backward()
        found[name] = shapes.peak / MIB
    return found


def apart(decoder: Any, x0: Tensor) -> dict[str, dict[str, float]]:
    """Of each way from the whole: the image's difference, the gradient's cosine and length."""
    found = gradients(decoder, x0)
    image, gradient = found["whole"]
    return {
        name: {
            "image": (other - image).abs().mean().item(),
            "cosine": torch.cosine_similarity(own.flatten(1), gradient.flatten(1)).mean().item(),
            "length": (own.norm() / gradient.norm()).item(),
        }
        for name, (other, own) in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A reward's gradient through a tiled decoder")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-tiled-decoding.json"))
    given = parser.parse_args()
    torch.manual_seed(0)
    full: Any = AutoencoderKL(**STABLE_DIFFUSION).requires_grad_(False).eval()
    small: Any = AutoencoderKL.from_pretrained(nano.path(), subfolder="vae")
    small.requires_grad_(False).eval()
    rows = {
        "random": apart(full, states(full, 1, given.pixels)),
        "embedded": apart(small, states(small, given.n, 64)),
    }
    sizes = {"512": peaks(STABLE_DIFFUSION, 64), "1024": peaks(STABLE_DIFFUSION, 128)}
    print("| decoder | way | image apart | cosine of the gradient | its length over the whole's |")
    print("|---|---|---|---|---|")
    for decoder, found in rows.items():
        for name, own in found.items():
            told = f"{own['image']:.4f} | {own['cosine']:.4f} | {own['length']:.3f}"
            print(f"| {decoder} | {name} | {told} |")
    print("| way | MiB at 512 | MiB at 1024 |")
    print("|---|---|---|")
    for name, value in sizes["512"].items():
        print(f"| {name} | {value:,.0f} | {sizes['1024'][name]:,.0f} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"apart": rows, "peaks": sizes}, indent=2) + "\n")


if __name__ == "__main__":
    main()
