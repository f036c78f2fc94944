"""Stage 1: the autoencoder, 64x64 pixels to 8x8x4 latents, as in Stable Diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nablaflow.nano.pretrain.stage import run_stage, set_learning_rate, take_step, warmup_cosine
from nablaflow.nano.scenes import IMAGE_SIZE, centres, render, sample_scenes

BATCH = 32
CROP = 32
LEARNING_RATE = 1e-3
KL_WEIGHT = 3e-4
EMA_DECAY = 0.995


def build_autoencoder() -> Any:
    levels = 4
    build: Any = AutoencoderKL  # its annotations say tuples of one
    return build(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def crop_at(images: Tensor, centre: Tensor, generator: torch.Generator) -> Tensor:
    """Square crops whose middle is near the object: most of a scene is flat background."""
    jitter = torch.randint(-12, 13, centre.shape, generator=generator)
    corner = (centre.round().long() - CROP // 2 + jitter).clamp(0, IMAGE_SIZE - CROP)
    return torch.stack(
        [
            image[:, y : y + CROP, x : x + CROP]
            for image, (x, y) in zip(images, corner.tolist(), strict=True)
        ]
    )


def autoencoder_loss(model: Any, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction (absolute plus squared error) and KL to N(0, I) per latent value.

    Args:
        images: in [-1, 1].
        noise: standard normal, the shape of the latents.
    """
    posterior = model.encode(images).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    decoded = model.decode(mean + (0.5 * logvar).exp() * noise).sample.float()
    reconstruction = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
    divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return reconstruction, divergence


def train_autoencoder(
    folder: Path, steps: int, seed: int, device: torch.device, autocast: bool
) -> AutoencoderKL:
    """Train, or resume, and return the averaged model in float32.

    Three quarters of the steps see crops around the object, four crops for the price of an image;
    the rest see whole images, so that borders and empty regions are learned too.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3
    )

    def step(index: int) -> dict[str, float]:
        crops = index < 0.75 * steps
        scenes = sample_scenes(2 * BATCH if crops else BATCH, generator)
        images = render(scenes) * 2.0 - 1.0
        if crops:
            images = crop_at(images, centres(scenes), generator)
        images = images.to(device, memory_format=torch.channels_last)
        side = images.shape[-1] // 8
        noise = torch.randn(len(images), 4, side, side, generator=generator).to(device)
        set_learning_rate(optimizer, LEARNING_RATE * warmup_cosine(index, steps, 200))
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            reconstruction, divergence = autoencoder_loss(model, images, noise)
        norm = take_step(reconstruction + KL_WEIGHT * divergence, model, optimizer, average)
        return {
            "reconstruction": reconstruction.item(),
            "kl": divergence.item(),
            "gradient_norm": norm,
        }

    state = {"model": model, "average": average, "optimizer": optimizer}
    run_stage("autoencoder", steps, step, state=state, generator=generator, folder=folder)
    trained: Any = average.module
    return trained.eval().requires_grad_(False)


@torch.no_grad()
def standardize_latents(model: Any, seed: int, scenes: int = 4000) -> None:
    """Give each latent channel mean 0 and variance 1 over the scenes, in place and exactly.

    The affine map goes into the two 1x1 convolutions around the latents, so that the pipeline's
    scaling factor is 1 and the noise schedule meets all channels alike.
    """
    device = next(model.parameters()).device
    images = render(sample_scenes(scenes, torch.Generator().manual_seed(seed + 3))) * 2.0 - 1.0
    means = torch.cat(
        [model.encode(part.to(device)).latent_dist.mean for part in images.split(200)]
    )
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    encode, decode = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    encode.weight[:channels] /= std[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / std
    encode.bias[channels:] -= 2.0 * std.log()
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= std[None, :, None, None]
    model.register_to_config(scaling_factor=1.0)
