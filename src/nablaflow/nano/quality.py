"""Measures the embedded model off its pixels: does it show what prompts name, and no more?"""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from nablaflow.nano.captions import HEIGHTS, SHADES, SIDES, SIZES
from nablaflow.nano.reader import read
from nablaflow.nano.scenes import COLORS, RADIUS, SHADE, SHAPES, Scenes, render, sample_scenes
from nablaflow.nano.shown import CLEAN_OVERLAP

HUE_TOLERANCE = 0.02  # turns: a colour this close to the named sector of the hue circle counts
BINS = 8


def generate(
    pipeline: Any, prompts: list[str], *, steps: int, guidance: float, seed: int, **call: Any
) -> Tensor:
    """Images in [0, 1] from the stock pipeline, 50 at once.

    Args:
        call: other arguments of the pipeline's call, such as DDIM's eta.
    """
    generator = torch.Generator().manual_seed(seed)
    pipeline.set_progress_bar_config(disable=True)
    parts = [
        pipeline(
            prompts[start : start + 50],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="pt",
            **call,
        ).images
        for start in track(range(0, len(prompts), 50), description="sample", transient=True)
    ]
    return torch.cat(parts).float()


def color_fits(hue: Tensor, color: str) -> Tensor:
    """Whether each hue (turns) lies in the named sector, within the tolerance."""
    low, high = COLORS[color]
    offset = (hue - low + HUE_TOLERANCE) % 1.0
    return offset < high - low + 2 * HUE_TOLERANCE


def named_accuracy(pipeline: Any, n: int, **sampling: Any) -> float:
    """Share of images for "a COLOUR SHAPE" that show both as one clean object."""
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    wanted = [pairs[index % len(pairs)] for index in range(n)]
    prompts = [f"a {color} {shape}" for color, shape in wanted]
    reading = read(generate(pipeline, prompts, **sampling))
    right_shape = [SHAPES[i] == s for i, (_, s) in zip(reading.scenes.shape, wanted, strict=True)]
    right_color = [
        bool(color_fits(hue, color))
        for hue, (color, _) in zip(reading.scenes.hue, wanted, strict=True)
    ]
    clean = (reading.overlap > CLEAN_OVERLAP).tolist()
    return sum(map(all, zip(right_shape, right_color, clean, strict=True))) / n


def word_accuracy(pipeline: Any, n: int, **sampling: Any) -> dict[str, float]:
    """Share of images that show the one word named besides the shape; 0.5 is chance."""
    phrases = {
        "size": [f"a {word} circle" for word in SIZES],
        "x": [f"a circle on the {word}" for word in SIDES],
        "y": [f"a circle at the {word}" for word in HEIGHTS],
        "shade": [f"a circle on a {word} background" for word in SHADES],
    }
    middle = {"size": sum(RADIUS) / 2, "x": 0.5, "y": 0.5, "shade": sum(SHADE) / 2}
    second = torch.arange(n) % 2 == 1
    found = {}
    for name, pair in phrases.items():
        images = generate(pipeline, [pair[index % 2] for index in range(n)], **sampling)
        scenes = read(images).scenes
        values = scenes.radius if name == "size" else getattr(scenes, name)
        found[name] = float(((values > middle[name]) == second).float().mean())
    return found


def histograms(scenes: Scenes) -> dict[str, Tensor]:
    """Share of each bin, by attribute; shapes have a bin each, the rest eight equal ones."""

    def shares(values: Tensor, low: float, high: float, bins: int = BINS) -> Tensor:
        index = ((values - low) / (high - low) * bins).floor().clamp(0, bins - 1).long()
        return torch.bincount(index, minlength=bins) / len(values)

    return {
        "shape": shares(scenes.shape.float(), 0, len(SHAPES), len(SHAPES)),
        "hue": shares(scenes.hue, 0.0, 1.0),
        "x": shares(scenes.x, 0.0, 1.0),
        "y": shares(scenes.y, 0.0, 1.0),
        "radius": shares(scenes.radius, *RADIUS),
        "shade": shares(scenes.shade, *SHADE),
    }


def free_variation(pipeline: Any, n: int, **sampling: Any) -> dict[str, float]:
    """Total variation from the scenes' own histogram, for each attribute that a prompt leaves free.

    Prompts that name only the shape leave the others free; shape is read off the rest.
    """
    by_shape = [f"a {SHAPES[index % len(SHAPES)]}" for index in range(n)]
    other = ["a shape", *(f"a {word} shape" for word in (*SIZES, "red", "blue", "green"))]
    other += [f"a shape on a {shade} background" for shade in SHADES]
    other += [f"a shape on the {side}" for side in SIDES]
    by_other = [other[index % len(other)] for index in range(n)]
    truth = histograms(sample_scenes(100_000, torch.Generator().manual_seed(12)))
    found = histograms(read(generate(pipeline, by_shape, **sampling)).scenes)
    found["shape"] = histograms(read(generate(pipeline, by_other, **sampling)).scenes)["shape"]
    return {name: float((found[name] - truth[name]).abs().sum() / 2) for name in truth}


@torch.no_grad()
def autoencoder_psnr(autoencoder: Any, n: int, seed: int) -> float:
    """Peak signal-to-noise ratio in dB of fresh scenes, encoded and decoded."""
    images = render(sample_scenes(n, torch.Generator().manual_seed(seed)))
    squared = [
        (autoencoder.decode(autoencoder.encode(part * 2 - 1).latent_dist.mean).sample / 2 + 0.5)
        .clamp(0, 1)
        .sub(part)
        .square()
        .mean((1, 2, 3))
        for part in images.split(100)
    ]
    return float(-10 * torch.cat(squared).mean().log10())


def sampling_seconds(pipeline: Any, n: int = 64, steps: int = 20, **call: Any) -> float:
    """Seconds for ``n`` images of ``steps`` steps in one batch, the better of two."""
    call = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "pt", **call}

    def once() -> float:
        start = time.perf_counter()
        pipeline(["a circle"] * n, **call)
        return time.perf_counter() - start

    pipeline.set_progress_bar_config(disable=True)
    return min(once(), once())


def measure(pipeline: Any, n: int = 1000, seed: int = 5, **call: Any) -> dict[str, Any]:
    """All figures of the model card.

    Args:
        call: arguments of the pipeline's call besides steps and guidance.
    """
    figures: dict[str, Any] = {"autoencoder_psnr_db": autoencoder_psnr(pipeline.vae, n, seed)}
    for guidance in (1.0, 2.0):
        sampling = {"steps": 20, "guidance": guidance, "seed": seed, **call}
        figures |= {
            f"named_accuracy_guidance_{guidance:g}": named_accuracy(pipeline, n, **sampling),
            f"free_variation_guidance_{guidance:g}": free_variation(pipeline, n, **sampling),
            f"word_accuracy_guidance_{guidance:g}": word_accuracy(pipeline, n // 4, **sampling),
        }
    figures["seconds_64_images_20_steps"] = sampling_seconds(pipeline, **call)
    return figures
