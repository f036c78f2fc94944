"""The published architectures at their full size, without their weights: names, targets, memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    ZImageTransformer2DModel,
)
from peft import get_peft_model_state_dict
from torch import Tensor

from nablaflow.models.adapters import ADAPTER, LoraAdapter
from nablaflow.models.architectures.blueprint import SDXL_UNET
from nablaflow.models.chroma import Chroma
from nablaflow.models.flow_matching import FlowMatching
from nablaflow.models.flux import Flux
from nablaflow.models.flux2_klein import Flux2Klein
from nablaflow.models.kohya import by_kohyas_names
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.qwen_image import QwenImage
from nablaflow.models.sd3 import StableDiffusion3
from nablaflow.models.z_image import ZImage
from tests.support import comfy

RANK = 8


def sd35(**config: Any) -> Any:
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        attention_head_dim=64,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        qk_norm="rms_norm",
        **config,
    )


def sd35_medium() -> Any:
    """As its transformer/config.json has it."""
    return sd35(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
    )


def sd35_large() -> Any:
    return sd35(
        num_layers=38,
        num_attention_heads=38,
        caption_projection_dim=2432,
        pos_embed_max_size=192,
    )


def klein_4b() -> Any:
    return Flux2Transformer2DModel(
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=7680,
        guidance_embeds=False,
    )


# Family, architecture; billions of parameters as published (rounded), adapted layers by target:
# of double blocks (text and image), of single ones, and what the last block of text leaves out.
SIZES: dict[str, tuple[type[FlowMatching], Callable[[], Any], float, dict[str, int]]] = {
    "sd3.5-medium": (StableDiffusion3, sd35_medium, 2.2, {"to_q": 37, "add_q_proj": 24}),
    "sd3.5-large": (StableDiffusion3, sd35_large, 8.1, {"to_q": 38, "to_add_out": 37}),
    "flux.1-dev": (
        Flux,
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        11.9,
        {"to_q": 57, "to_out.0": 19, "add_q_proj": 19},
    ),
    "flux.2-klein-4b": (Flux2Klein, klein_4b, 3.9, {"to_q": 5, "to_qkv_mlp_proj": 20}),
    "z-image": (ZImage, ZImageTransformer2DModel, 6.15, {"to_q": 34, "to_out.0": 34}),
    "qwen-image": (QwenImage, QwenImageTransformer2DModel, 20.4, {"to_q": 60, "to_add_out": 60}),
    "chroma": (Chroma, ChromaTransformer2DModel, 8.9, {"to_q": 57, "add_q_proj": 19}),
}


def adapted(network: Any, targets: list[str]) -> tuple[LoraAdapter, dict[str, Tensor]]:
    """A network with a LoRA, and the LoRA's weights by the names that it is saved with."""
    adapter = LoraAdapter(network, RANK, float(RANK), targets)
    network.peft_config = {ADAPTER: adapter.config}
    state = get_peft_model_state_dict(network, adapter_name=ADAPTER, save_embedding_layers=False)
    return adapter, state


def assert_of_layers(state: Mapping[str, Tensor], bare: Mapping[str, type], kinds: Any) -> None:
    for key in state:
        layer, _, factor = key.rpartition(".lora_")
        assert issubclass(bare[layer], kinds), key
        assert factor in ("A.weight", "B.weight")


@dataclass(frozen=True)
class FullSize:
    """A network without its weights, its modules' types before it had a LoRA, and the LoRA."""

    network: Any
    bare: dict[str, type]
    adapter: LoraAdapter
    state: dict[str, Tensor]


@pytest.fixture(scope="module")
def full_size() -> Callable[[str], FullSize]:
    """By the name in `SIZES`; each is built once, and only read."""

    @cache
    def built(name: str) -> FullSize:
        family, make, _, _ = SIZES[name]
        with torch.device("meta"):
            network = make()
            bare = {part: type(module) for part, module in network.named_modules()}
            return FullSize(network, bare, *adapted(network, family.lora_targets(network)))

    return built


@pytest.mark.parametrize("name", SIZES)
def test_the_full_size_takes_a_lora_whose_names_diffusers_has(
    full_size: Callable[[str], FullSize], name: str
) -> None:
    _, _, billions, layers = SIZES[name]
    found = full_size(name)
    coverage = found.adapter.coverage
    assert coverage.total / 1e9 == pytest.approx(billions, abs=0.05)
    assert {target: coverage.layers[target] for target in layers} == layers
    assert coverage.trained < 0.01 * coverage.total
    assert len(found.state) == 2 * sum(coverage.layers.values())
    assert_of_layers(found.state, found.bare, torch.nn.Linear)


SD2_HEADS = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
UNETS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "sd-1.5": (lambda: UNet2DConditionModel(cross_attention_dim=768), 859_520_964, 16),
    "sd-2.1": (
        lambda: UNet2DConditionModel(cross_attention_dim=1024, **SD2_HEADS),
        865_910_724,
        16,
    ),
    "sdxl": (
        lambda: UNet2DConditionModel(
            **SDXL_UNET, attention_head_dim=(5, 10, 20), cross_attention_dim=2048
        ),
        2_567_463_684,
        70,
    ),
}
"""Stable Diffusion's networks: parameters as published, and blocks with two attentions each."""


@pytest.mark.parametrize("name", UNETS)
def test_a_full_unet_takes_a_lora_whose_names_diffusers_and_comfyui_have(name: str) -> None:
    make, parameters, blocks = UNETS[name]
    with torch.device("meta"):
        network = make()
        bare = {part: type(module) for part, module in network.named_modules()}
        adapter, state = adapted(network, PipelineModel.lora_targets(network))
        tensors = by_kohyas_names(state, network, None)
    assert adapter.coverage.total == parameters
    attention = [key for key in state if ".attn" in key and ".lora_A." in key]
    assert len(attention) == blocks * 2 * 4
    assert_of_layers(state, bare, (torch.nn.Linear, torch.nn.Conv2d))
    known = {"lora_unet_" + layer.replace(".", "_") for layer in comfy.of_unet(network.config)}
    assert {key.partition(".")[0] for key in tensors} <= known


def test_a_full_pixel_model_takes_a_lora_on_its_layers() -> None:
    """As google/ddpm-celebahq-256's unet/config.json has it."""
    with torch.device("meta"):
        network = UNet2DModel(
            sample_size=256,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
            attention_head_dim=None,
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        )
        bare = {part: type(module) for part, module in network.named_modules()}
        adapter, state = adapted(network, PipelineModel.lora_targets(network))
    assert adapter.coverage.total == 113_673_219
    assert_of_layers(state, bare, (torch.nn.Linear, torch.nn.Conv2d))
    assert any(".resnets." in key for key in state), "attention is few of its layers"


@pytest.mark.parametrize("name", SIZES)
def test_the_full_size_fits_one_gpu_beside_what_trains(
    full_size: Callable[[str], FullSize], name: str
) -> None:
    """Weights in bf16; the LoRA, its gradient and Adam's two moments in float32."""
    coverage = full_size(name).adapter.coverage
    gibibytes = (2 * coverage.total + 16 * coverage.trained) / 2**30
    assert gibibytes < (48 if name == "qwen-image" else 24)


COMFY = {
    **{"sd3.5-medium": ("sd3", 24, 0), "sd3.5-large": ("sd3", 38, 0)},
    **{"flux.1-dev": ("flux", 19, 38), "flux.2-klein-4b": ("flux2", 5, 20)},
    **{"z-image": ("z-image", 30, 2), "qwen-image": ("qwen-image", 60, 0)},
    "chroma": ("flux", 19, 38),
}
"""As an own reading of ComfyUI's rules calls them, and their blocks."""


@pytest.mark.parametrize("name", SIZES)
def test_comfyui_has_a_place_for_each_adapted_layer_of_the_full_size(
    full_size: Callable[[str], FullSize], name: str
) -> None:
    """In a LoRA by kohya's names, which are those of the published checkpoint."""
    found = full_size(name)
    with torch.device("meta"):
        tensors = by_kohyas_names(found.state, found.network, SIZES[name][0].published_layers)
    layers = comfy.of_flow(*COMFY[name])
    own = {key.removesuffix(".lora_A.weight") for key in found.state if ".lora_A." in key}
    assert {row for rows in layers.values() for row in rows} >= own
    places = {place for place, rows in layers.items() if own.intersection(rows)}
    assert {key.partition(".")[0] for key in tensors} == {
        "lora_unet_" + place.replace(".", "_") for place in places
    }
