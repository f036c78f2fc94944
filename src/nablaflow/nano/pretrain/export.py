"""Puts the trained parts together as a stock diffusers pipeline, weights in float16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from nablaflow.nano.pretrain.denoiser import TextToNoise, build_scheduler


def export(
    autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, networks: TextToNoise, out: Path
) -> None:
    """Write ``out`` so that ``StableDiffusionPipeline.from_pretrained(out)`` loads it."""
    scheduler: Any = build_scheduler()
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=networks.text_encoder,
        tokenizer=tokenizer,
        unet=networks.denoiser,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.to("cpu", torch.float16).save_pretrained(out)
    # transformers would load this part alone in the precision that its configuration names.
    path = out / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    # Older transformers read the vocabulary from these two files.
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    folder = out / "tokenizer"
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
