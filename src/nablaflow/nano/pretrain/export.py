"""Puts the trained parts together as a stock diffusers pipeline, weights in float16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from transformers import CLIPTokenizer

from nablaflow.nano.pretrain import denoiser, velocity
from nablaflow.nano.pretrain.text import build_silent_t5, build_word_tokenizer
from nablaflow.storage.written import write_checksums


def export(
    autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, networks: denoiser.TextToNoise, out: Path
) -> None:
    """Write ``out`` so that ``StableDiffusionPipeline.from_pretrained(out)`` loads it."""
    scheduler: Any = denoiser.build_scheduler()
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
    _write(pipeline, out)


def export_flow(
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    networks: velocity.TextToVelocity,
    out: Path,
) -> None:
    """Write ``out`` so that ``StableDiffusion3Pipeline.from_pretrained(out)`` loads it."""
    scheduler: Any = velocity.build_scheduler()
    first, second = networks.text_encoders
    autoencoder.register_to_config(shift_factor=0.0)  # the pipeline adds it to the latents
    pipeline: Any = StableDiffusion3Pipeline(
        vae=autoencoder,
        text_encoder=first,  # type: ignore[arg-type]
        tokenizer=tokenizer,
        text_encoder_2=second,  # type: ignore[arg-type]
        tokenizer_2=tokenizer,
        text_encoder_3=build_silent_t5(velocity.ENCODERS * velocity.ENCODER_WIDTH),
        tokenizer_3=build_word_tokenizer(),  # type: ignore[arg-type]
        transformer=networks.transformer,
        scheduler=scheduler,
    )
    _write(pipeline, out)


def export_decoder(decoder: AutoencoderTiny, out: Path) -> None:
    """Write ``out`` so that ``AutoencoderTiny.from_pretrained(out)`` loads it."""
    whole: Any = decoder
    whole.to("cpu", torch.float16).save_pretrained(out)
    write_checksums(out)


def _write(pipeline: Any, out: Path) -> None:
    pipeline.to("cpu", torch.float16).save_pretrained(out)
    for folder in out.glob("text_encoder*"):
        _state_precision(folder / "config.json")
    for folder in (out / "tokenizer", out / "tokenizer_2"):
        if folder.is_dir():
            _write_vocabulary(pipeline.tokenizer, folder)
    write_checksums(out)


def _state_precision(path: Path) -> None:
    """Transformers would load this part alone in the precision that its configuration names."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def _write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The two files that older transformers read the vocabulary from."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
