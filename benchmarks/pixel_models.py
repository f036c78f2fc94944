"""Small pixel models, for trying defaults on models they were not chosen on.

    pip install scikit-learn
    python benchmarks/pixel_models.py digits
    python benchmarks/pixel_models.py patches
    python benchmarks/pixel_models.py scenes

trains an unconditional `DDPMPipeline` of 8 x 8 pixels and writes it to benchmarks/models/NAME: on
the data that scikit-learn ships, 1,797 handwritten digits or patches of its two photographs, or on
the embedded model's scenes at an eighth of their size. A stopped training goes on from its last
save. All clamp x0_hat, as pixel models of diffusers do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nablaflow.nano.pretrain.stage import run_stage, set_learning_rate, warmup_cosine
from nablaflow.nano.scenes import render, sample_scenes

SIZE = 8
BATCH = 128
STEPS = 4000
LEARNING_RATE = 2e-3
EMA_DECAY = 0.998
MODELS = Path(__file__).parent / "models"


def digits() -> Tensor:
    """(1797, 1, 8, 8) in [-1, 1]."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).float()[:, None] / 8.0 - 1.0


def patches() -> Tensor:
    """(n, 3, 8, 8) in [-1, 1], from the photographs at an eighth of their size."""
    from sklearn.datasets import load_sample_images

    found = []
    for photograph in load_sample_images().images:
        image = torch.from_numpy(photograph.copy()).float().permute(2, 0, 1)[None] / 127.5 - 1.0
        image = interpolate(image, scale_factor=0.125, mode="area")
        cut = image.unfold(2, SIZE, 1).unfold(3, SIZE, 1)[0]
        found.append(cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIZE, SIZE))
    return torch.cat(found)


def scenes() -> Tensor:
    """(8192, 3, 8, 8) in [-1, 1]."""
    drawn = render(sample_scenes(8192, torch.Generator().manual_seed(0)))
    return interpolate(2.0 * drawn - 1.0, size=SIZE, mode="area")


DATA: dict[str, Callable[[], Tensor]] = {
    "digits": digits,
    "patches": patches,
    "scenes": scenes,
}


def build(channels: int, scheduler: DDPMScheduler) -> DDPMPipeline:
    unet = UNet2DModel(
        sample_size=SIZE,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(24, 48),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=24,
    )
    return DDPMPipeline(unet, scheduler)


def train(name: str, folder: Path, steps: int) -> DDPMPipeline:
    """The pipeline with the average of the weights."""
    torch.manual_seed(0)
    data, generator = DATA[name](), torch.Generator().manual_seed(0)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True)
    pipeline = build(data.shape[1], scheduler)
    network = pipeline.unet
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    alpha_bars = scheduler.alphas_cumprod

    def step(index: int) -> dict[str, float]:
        clean = data[torch.randint(len(data), (BATCH,), generator=generator)]
        timestep = torch.randint(len(alpha_bars), (BATCH,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        kept = alpha_bars[timestep][:, None, None, None]
        predicted = network(kept.sqrt() * clean + (1.0 - kept).sqrt() * noise, timestep).sample
        loss = (predicted - noise).square().mean()
        set_learning_rate(optimizer, LEARNING_RATE * warmup_cosine(index, steps, 100))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
        return {"loss": loss.item()}

    state = {"network": network, "average": average, "optimizer": optimizer}
    run_stage(name, steps, step, state=state, generator=generator, folder=folder)
    network.load_state_dict(average.module.state_dict())
    return pipeline


def digit_classifier() -> dict[str, Tensor]:
    """A linear softmax classifier of the digits' pixels, by L-BFGS."""
    from sklearn.datasets import load_digits

    images, labels = digits().flatten(1), torch.from_numpy(load_digits().target).long()
    weight = torch.zeros(10, images.shape[1], requires_grad=True)
    bias = torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(images @ weight.T + bias, labels) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    right = ((images @ weight.T + bias).argmax(1) == labels).float().mean().item()
    print(f"classifier: {right:.1%} of its own data")
    return {"weight": weight.detach(), "bias": bias.detach()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=DATA)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--work", type=Path, default=Path("runs/pixel-models"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = MODELS / arguments.name
    train(arguments.name, arguments.work, arguments.steps).save_pretrained(folder)
    if arguments.name == "digits":
        save_file(digit_classifier(), folder / "classifier.safetensors")


if __name__ == "__main__":
    main()
