"""A LoRA by kohya's names, read by an own rendering of ComfyUI's rules: all of it, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import load_file
from torch import Tensor

import nablaflow as nf
from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.export import lora_layers
from nablaflow.models.formats import KOHYA_FILE, check_format, write_kohya
from nablaflow.models.kohya import by_kohyas_names
from nablaflow.models.load import FAMILIES
from nablaflow.models.lora_targets import automatic_targets
from nablaflow.models.pipelines import PipelineModel
from tests.support import comfy
from tests.support.flow_parts import SMALL
from tests.support.flow_pipelines import FLOW_FAMILIES
from tests.support.pipelines import (
    perturb,
    render,
    stable_diffusion,
    stable_diffusion_xl,
    unconditional,
)

EXACT = 1e-5
UNETS: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sd2": lambda: stable_diffusion("v_prediction"),
    "sdxl": stable_diffusion_xl,
}
EVERY_LAYER = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj"]
EVERY_LAYER += ["ff.net.2", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in", "conv"]
EVERY_LAYER += ["conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
FLOWS = {
    **{"sd3": "sd3", "flux-dev": "flux", "klein": "flux2"},
    **{"z-image": "z-image", "qwen-image": "qwen-image", "chroma": "flux"},
}
NAMES = {
    "klein": {"ff.net.2": "ff.linear_out"},
    "z-image": {"attn.to_k": "attention.to_k", "ff.net.2": "feed_forward.w2"},
    "qwen-image": {"ff.net.2": "img_mlp.net.2"},
}
"""What a family calls the layers of the settings below, where that differs."""


def policy(pipeline: Any, **adapter: Any) -> PipelineModel:
    torch.manual_seed(0)
    settings = AdapterSettings(**{"rank": 2, "alpha": 5.0, **adapter})
    model = load_model(pipeline, SamplerSettings(), settings, torch.device("cpu"))
    perturb(model.network)
    return model


def own_updates(model: PipelineModel) -> dict[str, Tensor]:
    """By peft's own rule, of each layer that has a LoRA."""
    layers: list[tuple[str, Any]] = list(model.network.named_modules())
    return {
        name: layer.get_delta_weight("default").flatten(1).detach()
        for name, layer in layers
        if hasattr(layer, "get_delta_weight")
    }


def written(model: PipelineModel, folder: Path) -> dict[str, Tensor]:
    write_kohya(model, folder / "kohya")
    return load_file(folder / "kohya" / KOHYA_FILE)


@pytest.mark.parametrize("targets", ["auto", EVERY_LAYER], ids=["auto", "every"])
@pytest.mark.parametrize("family", UNETS)
def test_comfyui_finds_every_layer_of_a_unet(tmp_path: Path, family: str, targets: Any) -> None:
    model = policy(UNETS[family](), targets=targets)
    unet: Any = model.pipeline.unet
    places = comfy.of_unet(unet.config)
    found, unused = comfy.updates(written(model, tmp_path), places)
    expected = {places[name]: value for name, value in own_updates(model).items()}
    assert unused == []
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        torch.testing.assert_close(found[place], value, rtol=0, atol=EXACT)
        assert value.abs().max() > 1000 * EXACT


@pytest.mark.parametrize(
    "adapter",
    [{}, {"targets": ["to_q", "to_v"]}, {"rank": 4, "targets": ["attn.to_k", "ff.net.2"]}],
    ids=["auto", "two of three", "one of three"],
)
@pytest.mark.parametrize("family", FLOWS)
def test_comfyui_finds_every_layer_of_a_transformer(
    tmp_path: Path, family: str, adapter: dict[str, Any]
) -> None:
    """Query, key and value are one layer there."""
    if "targets" in adapter:
        own_names = NAMES.get(family, {})
        adapter = {**adapter, "targets": [own_names.get(n, n) for n in adapter["targets"]]}
    model = policy(FLOW_FAMILIES[family](), **adapter)
    config: Any = model.network.config
    blocks = config.get("num_layers") or config["n_layers"]
    singles = config.get("num_single_layers") or config.get("n_refiner_layers", 0)
    layers = comfy.of_flow(FLOWS[family], blocks, singles)
    found, unused = comfy.updates(written(model, tmp_path), {name: name for name in layers})
    own = own_updates(model)
    expected = {}
    for place, rows in layers.items():
        if any(name in own for name in rows):
            expected[place] = comfy.stacked(rows, own, model.network)
    assert unused == []
    assert {name for rows in layers.values() for name in rows} >= own.keys()
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        torch.testing.assert_close(found[place], value, rtol=0, atol=EXACT)


def test_names_are_those_of_diffusers_own_conversion(tmp_path: Path) -> None:
    model = policy(stable_diffusion(), targets=EVERY_LAYER)
    theirs = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in lora_layers(model).items()})
    ours = written(model, tmp_path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].to(ours[name])) for name in ours)


@pytest.mark.parametrize("family", [*UNETS, "flux-dev", "klein", "qwen-image", "chroma", "z-image"])
def test_diffusers_reads_them_back(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Which has rules of its own for such files, of these families."""
    own = [f"transformer_blocks.0.attn.to_{part}" for part in (*"qkv", "out.0")]
    # Of single blocks diffusers knows FLUX's own width only.
    given = {"targets": [*own, "to_add_out"]} if family in ("flux-dev", "chroma") else {}
    model = policy(load_pipeline(str(folders[family])), **given)
    lora = written(model, tmp_path)
    stock = load_pipeline(str(folders[family]))
    size = {} if family in UNETS else SMALL
    untouched = render(stock, **size)
    stock.load_lora_weights(lora)
    with model.as_in_stock():
        expected = render(model.pipeline, **size)
    torch.testing.assert_close(render(stock, **size), expected, rtol=0, atol=1e-4)
    assert (untouched - expected).abs().max() > 0.01


@pytest.mark.parametrize("name", ["stable-diffusion-2-1", "sdxl"])
def test_the_rules_hold_at_full_size(name: str) -> None:
    """Every linear layer and convolution of the published architectures has a place."""
    config: dict[str, Any] = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
    if name == "sdxl":
        config = {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    with torch.device("meta"):
        unet = UNet2DConditionModel(use_linear_projection=True, **config)
    places = comfy.of_unet(unet.config)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = {n for n, part in unet.named_modules() if isinstance(part, kinds)}
    assert layers <= places.keys()
    assert len({places[name] for name in layers}) == len(layers)


FULL_SIZE = {
    **{"sd35": "sd3", "flux": "flux", "flux2-klein": "flux2"},
    **{"z-image": "z-image", "qwen-image": "qwen-image", "chroma": "flux"},
}
FUSED = {
    "sd35": ("joint_blocks_0_x_block_attn_qkv", 3 * 1536),
    "flux": ("single_blocks_37_linear1", 3 * 3072 + 12288),
    "flux2-klein": ("double_blocks_4_img_attn_qkv", 3 * 3072),
    "z-image": ("layers_29_attention_qkv", 3 * 3840),
    "qwen-image": ("transformer_blocks_59_attn_to_q", 3072),
    "chroma": ("single_blocks_37_linear1", 3 * 3072 + 12288),
}
"""A layer of the published checkpoint that others end up in, and its rows."""


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_transformer_of_full_size_has_its_places(name: str) -> None:
    """Of the published depth and widths: what `auto` adapts, and all that ComfyUI has a key for."""
    pipeline = nf.models.random(name, device="meta", dtype=torch.bfloat16)
    network: Any = pipeline.transformer
    blocks = network.config.get("num_layers") or network.config["n_layers"]
    singles = network.config.get("num_single_layers") or network.config.get("n_refiner_layers", 0)
    places = comfy.of_flow(FULL_SIZE[name], blocks, singles)
    held = {own for rows in places.values() for own in rows}
    linear = {n: part for n, part in network.named_modules() if isinstance(part, torch.nn.Linear)}
    automatic = tuple(f".{target}" for target in automatic_targets(network))
    chosen = {n: part for n, part in linear.items() if n.endswith(automatic) or n in held}
    assert held >= {n for n in chosen if n.endswith(automatic)}
    family = next(kind for kind in FAMILIES if type(pipeline) in kind.serves)
    tensors = by_kohyas_names(_factors(chosen), network, family.published_layers)
    keys = {f"lora_unet_{place.replace('.', '_')}": rows for place, rows in places.items()}
    found = {key.removesuffix(".lora_up.weight"): up for key, up in tensors.items() if "_up" in key}
    assert found.keys() == {key for key, rows in keys.items() if any(n in chosen for n in rows)}
    for key, up in found.items():
        assert len(up) == sum(linear[n].out_features for n in keys[key])
    place, rows = FUSED[name]
    assert len(found[f"lora_unet_{place}"]) == rows


def _factors(layers: dict[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        down = {f"{n}.lora_A.weight": torch.empty(2, p.in_features) for n, p in layers.items()}
        up = {f"{n}.lora_B.weight": torch.empty(p.out_features, 2) for n, p in layers.items()}
    return down | up


def test_a_layer_without_a_name_is_one_line() -> None:
    model = policy(FLOW_FAMILIES["sd3"](), targets=["norm1.linear"])
    with pytest.raises(UserError, match=r"--format: .*norm1\.linear.* use diffusers or merged"):
        by_kohyas_names(lora_layers(model), model.network, model.published_layers)


def test_what_is_no_lora_is_refused() -> None:
    for pipeline, adapter, said in (
        (unconditional(), {}, "a LoRA of a DDPMPipeline; use merged"),
        (stable_diffusion(), {"kind": "full"}, "so there is no LoRA for kohya; use merged"),
    ):
        with pytest.raises(UserError, match=said):
            check_format(policy(pipeline, **adapter), "kohya")


def test_the_embedded_model_has_the_names_too(tmp_path: Path) -> None:
    model = policy(load_pipeline(str(nano.path())), rank=1)
    unet: Any = model.pipeline.unet
    found, unused = comfy.updates(written(model, tmp_path), comfy.of_unet(unet.config))
    assert unused == []
    assert len(found) == len(own_updates(model))
