"""The second model's networks: a flow-matching transformer and its text encoders, SD3's classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTokenizer

from nablaflow.nano.captions import sample_captions
from nablaflow.nano.pretrain.denoiser import encoded_scenes
from nablaflow.nano.pretrain.stage import run_stage, set_learning_rate, take_step, warmup_cosine
from nablaflow.nano.pretrain.text import TEXT_LENGTH, build_projecting_encoder
from nablaflow.nano.scenes import Scenes

BATCH = 64
LEARNING_RATE = 2e-3
EMA_DECAY = 0.999
SCENES = 100_000
HEADS, HEAD_WIDTH = 5, 32
LOGIT_NORMAL = (0.5, 1.2)
ENCODERS = 2
ENCODER_WIDTH = 64
EMPTY_TOKENS = 256
"""Of a silent T5, by default; the call's max_sequence_length says how many."""
TRAIN_TIMESTEPS = 1000
NETWORK_FILES = (
    "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
)
"""Of a pipeline's folder: the transformer and the text encoders, in `TextToVelocity`'s order."""


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion 3's shift, which has most levels where shape, hue and place are decided.

    Ten steps of memoryless noise then narrow the scenes as little as twenty without a shift.
    """
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=3.0)


def build_transformer() -> SD3Transformer2DModel:
    """Four blocks of width 160 on the 16 patches of 2x2 latents."""
    width = HEADS * HEAD_WIDTH
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=ENCODERS * ENCODER_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=ENCODERS * ENCODER_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


class RepeatLastKey(TorchFunctionMode):
    """Within it attention counts its last key ``times`` times, as if it stood there so often.

    Equal tokens without positions stay equal, so that one is as good as many: a logarithm in the
    softmax says how many, and 16 image tokens are not trained at the cost of 272.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            bias = args[1].new_zeros(args[1].shape[-2])
            bias[-1] = math.log(self.times)
            options["attn_mask"] = bias[None, None, None]
        return func(*args, **options)


class TextToVelocity(nn.Module):
    """All networks that are trained together, put together as `StableDiffusion3Pipeline` does."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoders = nn.ModuleList(
            build_projecting_encoder(tokenizer, ENCODER_WIDTH) for _ in range(ENCODERS)
        )
        self.transformer: SD3Transformer2DModel = build_transformer()

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor, empty: int) -> Tensor:
        """The velocity at ``x``; ``empty`` zero tokens are what a silent T5 gives."""
        found: Any = [encoder(tokens, output_hidden_states=True) for encoder in self.text_encoders]
        hidden = torch.cat([one.hidden_states[-2] for one in found], dim=-1)
        pooled = torch.cat([one.text_embeds for one in found], dim=-1)
        with RepeatLastKey(empty):
            return self.transformer(
                hidden_states=x,
                timestep=timestep,
                encoder_hidden_states=F.pad(hidden, (0, 0, 0, 1)),
                pooled_projections=pooled,
                return_dict=False,
            )[0]


def sample_levels(generator: torch.Generator) -> Tensor:
    """S of a batch: logit-normal (arXiv 2403.03206, section 3.1), moved towards the noise.

    Shape, hue and place are decided where 256 latents hold little more than the noise does.
    """
    mean, scale = LOGIT_NORMAL
    return (mean + scale * torch.randn(BATCH, generator=generator)).sigmoid()


def load_networks(model: TextToVelocity, pipeline: Path) -> None:
    """Fill ``model`` with the weights that `export_flow` wrote to the folder ``pipeline``.

    Raises:
        OSError: a file is not there.
        SafetensorError: a file is damaged.
        RuntimeError: they are of another architecture.
    """
    networks = (model.transformer, *model.text_encoders)
    for file, network in zip(NETWORK_FILES, networks, strict=True):
        network.load_state_dict(load_file(pipeline / file))


@dataclass(frozen=True)
class Examples:
    """What one step learns from.

    Attributes:
        x: states, (batch, 4, 8, 8); ``velocity`` is their target.
        s: their levels, from 0 to 1.
        tokens: of their captions.
        empty: zero tokens beside them.
    """

    x: Tensor
    velocity: Tensor
    s: Tensor
    tokens: Tensor
    empty: int


def draw_examples(
    latents: Tensor, scenes: Scenes, tokenizer: CLIPTokenizer, generator: torch.Generator
) -> Examples:
    """Scenes with a caption each, noised: x_s = (1 - s) x_0 + s epsilon, by epsilon - x_0."""
    chosen = torch.randint(len(latents), (BATCH,), generator=generator)
    captions = sample_captions(scenes[chosen], generator)
    tokens = tokenizer(
        captions, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt"
    ).input_ids
    s, clean = sample_levels(generator), latents[chosen]
    noise = torch.randn(clean.shape, generator=generator)
    empty = int(EMPTY_TOKENS ** torch.rand((), generator=generator).item())
    return Examples(
        torch.lerp(clean, noise, s[:, None, None, None]), noise - clean, s, tokens, empty
    )


def train_flow(
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int,
    seed: int,
    device: torch.device,
    autocast: bool,
    start: Path | None = None,
) -> TextToVelocity:
    """Train, or resume, and return the averaged networks in float32.

    Args:
        start: a pipeline that this function trained, whose networks the training begins from.
    """
    torch.manual_seed(seed)
    model: Any = TextToVelocity(tokenizer)
    if start is not None:
        load_networks(model, start)
    model = model.to(device)
    cache = folder / "flow-latents.safetensors"
    data = encoded_scenes(autoencoder, cache, seed + 1, device, SCENES)
    latents = data.latents * autoencoder.config["scaling_factor"]
    generator = torch.Generator().manual_seed(seed + 2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-2
    )

    def step(index: int) -> dict[str, float]:
        shown = draw_examples(latents, data.scenes, tokenizer, generator)
        set_learning_rate(optimizer, LEARNING_RATE * warmup_cosine(index, steps, 200))
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=autocast),
            sdpa_kernel(SDPBackend.MATH),
        ):
            timestep = (TRAIN_TIMESTEPS * shown.s).to(device)
            predicted = model(shown.x.to(device), timestep, shown.tokens.to(device), shown.empty)
        loss = F.mse_loss(predicted.float(), shown.velocity.to(device))
        norm = take_step(loss, model, optimizer, average)
        return {"loss": loss.item(), "gradient_norm": norm}

    state = {"model": model, "average": average, "optimizer": optimizer}
    run_stage("flow", steps, step, state=state, generator=generator, folder=folder)
    trained = average.module
    assert isinstance(trained, TextToVelocity)
    return trained.eval().requires_grad_(False)
