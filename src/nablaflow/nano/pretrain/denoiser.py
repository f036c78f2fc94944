"""Stage 2: the text encoder and the denoiser, trained together on the autoencoder's latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from nablaflow.nano.captions import sample_captions
from nablaflow.nano.pretrain.stage import run_stage, set_learning_rate, take_step, warmup_cosine
from nablaflow.nano.pretrain.text import TEXT_LENGTH, TEXT_WIDTH, build_text_encoder
from nablaflow.nano.scenes import Scenes, render, sample_scenes

BATCH = 64
LEARNING_RATE = 1e-3
EMA_DECAY = 0.999
SCENES = 40_000
MIN_SNR_GAMMA = 5.0


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule and sampler settings."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def build_denoiser() -> UNet2DConditionModel:
    """Two levels, 8x8 and 4x4, attention at the lower: small enough for a laptop's processor."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 160),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
    )


class TextToNoise(nn.Module):
    """The two networks that stage 2 trains, as one module."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder: CLIPTextModel = build_text_encoder(tokenizer)
        self.denoiser: UNet2DConditionModel = build_denoiser()

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        context = self.text_encoder(tokens).last_hidden_state
        return self.denoiser(x, timestep, context).sample


@dataclass(frozen=True)
class LatentScenes:
    """Encoded scenes: latents (n, 4, 8, 8), already scaled, and what is drawn in them."""

    latents: Tensor
    scenes: Scenes


@torch.no_grad()
def encode(autoencoder: Any, scenes: Scenes, device: torch.device) -> Tensor:
    """Latents of drawn scenes: the posterior's mean, since the noise added to it is small."""
    autoencoder.to(memory_format=torch.channels_last)
    latents = []
    for start in track(range(0, len(scenes), 500), "encode", console=Console(stderr=True)):
        images = render(scenes[start : start + 500]).to(device) * 2.0 - 1.0
        latents.append(autoencoder.encode(images).latent_dist.mean.cpu().contiguous())
    return torch.cat(latents)


def encoded_scenes(
    autoencoder: AutoencoderKL, cache: Path, seed: int, device: torch.device, n: int = SCENES
) -> LatentScenes:
    """The training set, encoded on the first call and read from ``cache`` afterwards."""
    scenes = sample_scenes(n, torch.Generator().manual_seed(seed))
    if not cache.is_file():
        save_file({"latents": encode(autoencoder, scenes, device)}, cache)
    return LatentScenes(load_file(cache)["latents"], scenes)


def min_snr_weight(alpha_bar: Tensor) -> Tensor:
    """Weight of the noise prediction's error, min(snr, gamma) / snr (arXiv 2303.09556)."""
    snr = alpha_bar / (1.0 - alpha_bar)
    return snr.clamp(max=MIN_SNR_GAMMA) / snr


def train_denoiser(
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int,
    seed: int,
    device: torch.device,
    autocast: bool,
) -> TextToNoise:
    """Train, or resume, and return the averaged networks in float32."""
    torch.manual_seed(seed)
    data = encoded_scenes(autoencoder, folder / "latents.safetensors", seed + 1, device)
    latents = data.latents * autoencoder.config["scaling_factor"]
    generator = torch.Generator().manual_seed(seed + 2)
    model: Any = TextToNoise(tokenizer)
    model = model.to(device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-2
    )
    alpha_bars = build_scheduler().alphas_cumprod

    def step(index: int) -> dict[str, float]:
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        captions = sample_captions(data.scenes[chosen], generator)
        tokens = tokenizer(
            captions, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt"
        ).input_ids
        timestep = torch.randint(len(alpha_bars), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=generator)
        alpha_bar = alpha_bars[timestep]
        scale = alpha_bar[:, None, None, None]
        x = scale.sqrt() * latents[chosen] + (1.0 - scale).sqrt() * noise
        x = x.to(device, memory_format=torch.channels_last)
        set_learning_rate(optimizer, LEARNING_RATE * warmup_cosine(index, steps, 200))
        # Sixteen tokens: the fused attention's backward pass costs a quarter of a step on a CPU.
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=autocast),
            sdpa_kernel(SDPBackend.MATH),
        ):
            predicted = model(x, timestep.to(device), tokens.to(device))
        error = (predicted.float() - noise.to(device)).square().mean((1, 2, 3))
        loss = (min_snr_weight(alpha_bar).to(device) * error).mean()
        norm = take_step(loss, model, optimizer, average)
        return {"loss": loss.item(), "error": error.mean().item(), "gradient_norm": norm}

    state = {"model": model, "average": average, "optimizer": optimizer}
    run_stage("denoiser", steps, step, state=state, generator=generator, folder=folder)
    trained = average.module
    assert isinstance(trained, TextToNoise)
    return trained.eval().requires_grad_(False)
