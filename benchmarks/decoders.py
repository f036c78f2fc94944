"""The gradient of a reward through a family's small decoder beside the one through its own.

    python benchmarks/decoders.py --full runwayml/stable-diffusion-v1-5 --small madebyollin/taesd

takes states that the full autoencoder makes of pictures of the embedded model's scenes, and prints
the cosine of the two gradients by the state, seconds of the processor, and what is saved for
backward. Without `--full` both have random weights: then only costs can be read off, and the
cosine is that of two directions by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from nablaflow.models.decoding import in_units_of
from nablaflow.models.small_decoder import load_small_decoder
from nablaflow.nano.scenes import render, sample_scenes
from nablaflow.rewards import NamedReward, load

STABLE_DIFFUSION: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}


def autoencoders(full: str | None, small: str | None) -> tuple[Any, Any]:
    """Stable Diffusion's own and the small one; both random without ``full``."""
    if full is None:
        torch.manual_seed(0)
        return AutoencoderKL(**STABLE_DIFFUSION), AutoencoderTiny()
    own = AutoencoderKL.from_pretrained(full, subfolder="vae", use_safetensors=True)
    factor = 2 ** (len(own.config["block_out_channels"]) - 1)
    return own, load_small_decoder(str(small), own.config["latent_channels"], factor)


def states(full: Any, n: int, pixels: int) -> Tensor:
    """Of pictures of the embedded model's scenes, (n, channel, pixels / 8, pixels / 8)."""
    images = render(sample_scenes(n, torch.Generator().manual_seed(0)), pixels)
    with torch.no_grad():
        latents = full.encode(images * 2 - 1).latent_dist.mean
    config = full.config
    return (latents - (config.get("shift_factor") or 0.0)) * config["scaling_factor"]


def gradient(decoder: Any, x0: Tensor, reward: NamedReward) -> tuple[Tensor, float, int]:
    """By the state, a row at a time; seconds of the processor; bytes saved for backward, a row."""
    saved, weights = 0, {part.data_ptr() for part in decoder.parameters()}

    def count(value: Tensor) -> Tensor:
        nonlocal saved
        if value.data_ptr() not in weights:  # which are there anyway
            saved += value.numel() * value.element_size()
        return value

    leaf, began = x0.clone().requires_grad_(), time.process_time()
    for row in leaf.split(1):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            pixels = decoder.decode(in_units_of(decoder, row)).sample
            score = reward((pixels / 2 + 0.5).clamp(0, 1), ["a circle"])
        score.sum().backward()
    assert leaf.grad is not None
    return leaf.grad, time.process_time() - began, saved // len(x0)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    found = dict(zip(("full", "small"), autoencoders(given.full, given.small), strict=True))
    for part in found.values():
        part.requires_grad_(False).eval()
    x0, reward = states(found["full"], given.n, given.pixels), load(given.reward)
    runs = {name: [] for name in found}
    for _ in range(given.repeats):
        for name, decoder in found.items():
            runs[name].append(gradient(decoder, x0, reward))
    gradients = [runs[name][0][0].flatten(1) for name in ("full", "small")]
    return {
        "weights": given.full or "random",
        "cosine": torch.cosine_similarity(*gradients).tolist(),
        "seconds": {name: [took for _, took, _ in each] for name, each in runs.items()},
        "saved_mib": {name: each[0][2] / 2**20 for name, each in runs.items()},
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A reward's gradient through a small decoder")
    parser.add_argument("--full", help="hub id or folder of the pipeline")
    parser.add_argument("--small", default="madebyollin/taesd")
    parser.add_argument("--reward", default="warmth")
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-decoders.json"))
    given = parser.parse_args()
    row = measure(given)
    seconds = {name: median(values) for name, values in row["seconds"].items()}
    saved, cosine = row["saved_mib"], median(row["cosine"])
    print("| weights | cosine | seconds: full, small | MiB saved a row: full, small | load |")
    print("|---|---|---|---|---|")
    print(
        f"| {row['weights']} | {cosine:.3f} | {seconds['full']:.2f}, {seconds['small']:.2f} | "
        f"{saved['full']:.0f}, {saved['small']:.0f} | {row['load']:.1f} |"
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
