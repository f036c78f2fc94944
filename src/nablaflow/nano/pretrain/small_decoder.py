"""A stage of its own: a small decoder of the embedded latents, for a reward's gradient.

It learns the images that the embedded models' decoder makes, and how they change by a small step
of the latents (Sobolev training, arXiv 1706.04859): a product of its Jacobian with a random
direction, without a second derivative. What it learns from are the denoiser's x0_hat, at any
noise, since rewards are asked about those.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nablaflow import nano
from nablaflow.nano.captions import sample_captions
from nablaflow.nano.pretrain.stage import run_stage, set_learning_rate, take_step, warmup_cosine
from nablaflow.nano.scenes import Scenes, centres, render, sample_scenes

BATCH = 4  # pairs of scenes, or four times as many of crops
LEARNING_RATE = 2e-3
EMA_DECAY = 0.995
CROPS, WHOLE = 6000, 1500  # pairs that there are
FACTOR, CROP = 8, 4  # pixels of a latent; latents of a crop
STEP = 0.1  # of one latent, to either side
CLEAN = 0.25
"""Of the lessons, the share whose latents are a scene's own, and no x0_hat."""
CHANGE_WEIGHT = 0.2
LEVELS = 4


def build_small_decoder() -> AutoencoderTiny:
    """A fifth of the full decoder's FLOPs; of its encoder, which nobody asks for, next to nothing.

    Its blocks are where they are cheap: at 8 x 8 and 16 x 16 pixels, and one at 32 x 32.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(1,) * LEVELS,
        num_encoder_blocks=(0,) * LEVELS,
        decoder_block_out_channels=(24,) * LEVELS,
        num_decoder_blocks=(3, 3, 1, 0),
        act_fn="silu",
    )


@torch.no_grad()
def draw_latents(
    pipeline: Any, scenes: Scenes, generator: torch.Generator
) -> Float[Tensor, "batch 4 8 8"]:
    """What the denoiser takes scenes for, each noised to a timestep of its own; some as they are.

    Args:
        pipeline: the embedded diffusion model's.
    """
    device = pipeline.device
    images = render(scenes).to(device) * 2.0 - 1.0
    clean = pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config["scaling_factor"]
    n, alpha_bars = len(clean), pipeline.scheduler.alphas_cumprod
    timestep = torch.randint(len(alpha_bars), (n,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    alpha_bar = alpha_bars[timestep][:, None, None, None].to(device)
    x = alpha_bar.sqrt() * clean + (1.0 - alpha_bar).sqrt() * noise
    prompts = sample_captions(scenes, generator)
    context = pipeline.encode_prompt(prompts, device, 1, False)[0]
    epsilon = pipeline.unet(x, timestep.to(device), context).sample
    x0_hat = (x - (1.0 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    kept = torch.rand(n, generator=generator).to(device) < CLEAN
    return torch.where(kept[:, None, None, None], clean, x0_hat)


def crop_at(latents: Tensor, centre: Tensor, generator: torch.Generator) -> Tensor:
    """Latents of 4 x 4 whose middle is near the object: most of a scene is flat background.

    Args:
        centre: of each scene's object, (batch, 2), pixels.
    """
    jitter = torch.randint(-1, 2, centre.shape, generator=generator)
    corner = (centre / FACTOR - CROP / 2).round().long() + jitter
    corner = corner.clamp(0, latents.shape[-1] - CROP)
    return torch.stack(
        [
            part[:, y : y + CROP, x : x + CROP]
            for part, (x, y) in zip(latents, corner.tolist(), strict=True)
        ]
    )


def make_lessons(
    pipeline: Any, n: int, generator: torch.Generator, *, cropped: bool = False, batch: int = 100
) -> dict[str, Tensor]:
    """Pairs of latents a step apart, (n, 2, 4, 8, 8), and the full decoder's images of them.

    Args:
        cropped: to what is near the object; the images are those of the crops alone.
    """
    rows: list[dict[str, Tensor]] = []
    for first in track(range(0, n, batch), "lessons", console=Console(stderr=True)):
        scenes = sample_scenes(min(batch, n - first), generator)
        latents = draw_latents(pipeline, scenes, generator)
        if cropped:
            latents = crop_at(latents, centres(scenes), generator)
        step = STEP * torch.randn(latents.shape, generator=generator).to(latents)
        pair = torch.stack([latents + step, latents - step], 1)
        with torch.no_grad():
            images = pipeline.vae.decode(pair.flatten(0, 1), return_dict=False)[0]
        images = images.unflatten(0, pair.shape[:2])
        rows.append(
            {"latents": pair.cpu().contiguous(), "images": images.cpu().half().contiguous()}
        )
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class Lessons:
    """Pairs of latents and their images, and how many of them a step learns from.

    Attributes:
        least: see `distillation_loss`.
    """

    latents: Tensor
    images: Tensor
    batch: int
    least: Float[Tensor, "scale"]

    @staticmethod
    def of(found: dict[str, Tensor], batch: int) -> Lessons:
        least = sizes_of_changes(found["images"]).median(1).values / 4
        return Lessons(found["latents"], found["images"], batch, least)

    def loss(
        self, model: Any, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Of some of them, drawn at random."""
        chosen = torch.randint(len(self.latents), (self.batch,), generator=generator)
        latents, wanted = self.latents[chosen].to(device), self.images[chosen].to(device)
        return distillation_loss(model, latents, wanted.float(), self.least.to(device))


def lessons_of(device: torch.device, folder: Path, seed: int) -> tuple[Lessons, Lessons]:
    """Crops, and whole scenes; made on the first call and read from ``folder`` afterwards."""
    found = []
    for name, n, cropped in (("crops", CROPS, True), ("whole", WHOLE, False)):
        cache = folder / f"decoder-{name}.safetensors"
        if not cache.is_file():
            generator = torch.Generator().manual_seed(seed + cropped)
            save_file(make_lessons(embedded_pipeline(device), n, generator, cropped=cropped), cache)
        found.append(Lessons.of(load_file(cache), 4 * BATCH if cropped else BATCH))
    return found[0], found[1]


def changes(images: Float[Tensor, "pair 2 channel h w"]) -> list[Tensor]:
    """How images change along their pairs' steps, in squares from 1 pixel to the whole.

    The coarse ones are what a reward of an image's mean is told, and next to nothing of a sum of
    squares by the pixel.
    """
    change = images[:, 0] - images[:, 1]
    return [F.avg_pool2d(change, 2**level) for level in range(change.shape[-1].bit_length())]


def sizes_of_changes(images: Tensor) -> Float[Tensor, "scale pair"]:
    """Mean squares of the full decoder's changes, by the scale and the pair."""
    parts = [[_mean_square(part) for part in changes(few.float())] for few in images.split(100)]
    return torch.cat([torch.stack(part) for part in parts], 1)


def _mean_square(change: Tensor) -> Float[Tensor, "pair"]:
    return change.square().flatten(1).mean(1)


def distillation_loss(
    model: Any, latents: Tensor, wanted: Tensor, least: Float[Tensor, "scale"]
) -> tuple[Tensor, Tensor]:
    """Of images (absolute plus squared error), and of their changes, relative, a mean of scales.

    Relative to each pair's own: near the noise a twentieth of the pairs change by fifty times more.

    Args:
        latents: pairs, (pair, 2, 4, 8, 8); ``wanted`` are their images in [-1, 1].
        least: added to the size of a change that an error is relative to, by the scale.
    """
    images = model.decode(latents.flatten(0, 1), return_dict=False)[0].unflatten(0, (-1, 2))
    errors = torch.stack([_mean_square(part) for part in changes(images - wanted)])
    relative = errors / (sizes_of_changes(wanted) + least[:, None])
    return F.l1_loss(images, wanted) + F.mse_loss(images, wanted), relative.mean()


def train_small_decoder(
    folder: Path, steps: int, seed: int, device: torch.device
) -> AutoencoderTiny:
    """Train, or resume, and return the averaged model in float32.

    Three quarters of the steps see crops, four for the price of a scene; the rest whole scenes.
    """
    crops, whole = lessons_of(device, folder, seed + 10)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 2)
    model: Any = build_small_decoder()
    model = model.to(device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4
    )

    def step(index: int) -> dict[str, float]:
        set_learning_rate(optimizer, LEARNING_RATE * warmup_cosine(index, steps, 100))
        lessons = crops if index < 0.75 * steps else whole
        of_images, of_changes = lessons.loss(model, generator, device)
        norm = take_step(of_images + CHANGE_WEIGHT * of_changes, model, optimizer, average)
        return {
            "images": of_images.item(),
            "changes": of_changes.item(),
            "gradient_norm": norm,
        }

    state = {"model": model, "average": average, "optimizer": optimizer}
    run_stage("decoder", steps, step, state=state, generator=generator, folder=folder)
    trained: Any = average.module
    return trained.eval().requires_grad_(False)


def embedded_pipeline(device: torch.device) -> Any:
    """The embedded diffusion model in float32, its weights constant."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(nano.path(), torch_dtype=torch.float32)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return pipeline.to(device)
