"""LoRAs by every name and shape that files have them in: the weights are those of an own sum.

The sum is ``base + alpha / rank up @ down``, rows side by side divided, and the checkpoints' names
are those of an own rendering of ComfyUI's rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from nablaflow.errors import UserError
from nablaflow.models import WithLora, load_pipeline
from nablaflow.models.load import family_of
from nablaflow.models.lora_file import read_lora
from nablaflow.models.lora_loading import is_read_alike
from nablaflow.models.unet_names import published_names
from tests.support import comfy

FLOWS = {
    **{"sd3": "sd3", "flux-dev": "flux", "klein": "flux2"},
    **{"z-image": "z-image", "qwen-image": "qwen-image", "chroma": "flux"},
}
UNETS = ("sd", "sd2", "sdxl")
DOWN, A, OLD = ("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up")


def published(family: str, network: Any) -> dict[str, list[str]]:
    """The checkpoint's layers, and diffusers' whose rows they hold."""
    if family in UNETS:
        there = own(family, network)
        return {name: [at] for at, name in comfy.of_unet(network.config).items() if at in there}
    config = network.config
    blocks = config.get("num_layers") or config["n_layers"]
    singles = config.get("num_single_layers") or config.get("n_refiner_layers", 0)
    there = own(family, network)
    layers = comfy.of_flow(FLOWS[family], blocks, singles)
    return {name: rows for name, rows in layers.items() if there.keys() >= set(rows)}


def own(family: str, network: Any) -> dict[str, list[str]]:
    kinds = (nn.Linear, nn.Conv2d) if family in UNETS else nn.Linear
    return {name: [name] for name, part in network.named_modules() if isinstance(part, kinds)}


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda name: f"{prefix}{name}"


def flat(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


FORMS: dict[str, tuple[Any, Callable[[str], str], tuple[str, str], float | None]] = {
    "comfyui": (published, dotted("diffusion_model."), A, None),
    "comfyui with alphas": (published, dotted("diffusion_model."), A, 2.0),
    "comfyui, down and up": (published, dotted("diffusion_model."), DOWN, 2.0),
    "comfyui's prefix, diffusers' names": (own, dotted("diffusion_model."), A, 2.0),
    "no prefix": (own, dotted(""), A, None),
    "kohya, the checkpoint's names": (published, flat, DOWN, 2.0),
    "kohya, diffusers' names": (own, flat, DOWN, 2.0),
    "kohya without alphas": (own, flat, DOWN, None),
    "onetrainer": (own, lambda n: "lora_transformer_" + n.replace(".", "_"), DOWN, 2.0),
    "diffusers with alphas": (own, dotted("{part}."), A, 2.0),
    "diffusers, down and up": (own, dotted("{part}."), DOWN, 2.0),
    "older diffusers with alphas": (own, dotted("{part}."), OLD, 2.0),
}


def made(
    layers: Mapping[str, list[str]],
    network: nn.Module,
    key: Callable[[str], str],
    ends: tuple[str, str],
    alpha: float | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's tensors, of ranks 2 and 4 in turns, and what they add to each of the layers."""
    random = torch.Generator().manual_seed(0)
    state, added = {}, {}
    for number, (name, rows) in enumerate(layers.items()):
        parts: list[Any] = [network.get_submodule(row) for row in rows]
        rank, sizes = (2, 4)[number % 2], [len(part.weight) for part in parts]
        weight = parts[0].weight
        down = torch.randn(rank, *weight.shape[1:], generator=random)
        up = torch.randn(sum(sizes), rank, *(1,) * (weight.ndim - 2), generator=random)
        for end, factor in zip(ends, (down, up), strict=True):
            state[f"{key(name)}.{end}.weight"] = factor
        if alpha is not None:
            state[f"{key(name)}.alpha"] = torch.tensor(alpha)
        product = (alpha or rank) / rank * up.flatten(1) @ down.flatten(1)
        for row, value, part in zip(rows, product.split(sizes), parts, strict=True):
            added[row] = value.view(part.weight.shape)
    return state, added


def save(state: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, file)


def assert_read(pipeline: Any, file: Path, added: Mapping[str, Tensor]) -> None:
    given = read_lora(pipeline, family_of(pipeline).part(), file, "adapter.start").layers
    assert given.keys() == added.keys()
    for name, value in added.items():
        factors = given[name]
        product = factors.scale * factors.up.flatten(1) @ factors.down.flatten(1)
        torch.testing.assert_close(product.view(value.shape), value, rtol=1e-5, atol=1e-5)


def assert_fused(base: Path, pipeline: Any, file: Path, added: Mapping[str, Tensor]) -> None:
    part = family_of(pipeline).denoiser
    fused = getattr(load_pipeline(WithLora(str(base), file, 0.5)), part)
    before = dict(getattr(pipeline, part).named_parameters())
    more = {f"{name}.weight": 0.5 * value for name, value in added.items()}
    for name, value in fused.named_parameters():
        wanted = before[name] + more.pop(name, torch.zeros(()))
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    assert not more


@pytest.mark.parametrize("family", [*UNETS, *FLOWS])
def test_every_layer_is_found_by_what_files_call_it(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    pipeline = load_pipeline(str(folders[family]))
    part = family_of(pipeline).part()
    network = getattr(pipeline, part.name)
    for number, (layers, key, ends, alpha) in enumerate(FORMS.values()):
        file = tmp_path / f"{number}.safetensors"
        state, added = made(layers(family, network), network, key, ends, alpha)
        save({name.replace("{part}", part.name): value for name, value in state.items()}, file)
        assert_read(pipeline, file, added)
        assert not is_read_alike(pipeline, part, file)


@pytest.mark.parametrize("family", ["sd", "flux-dev", "klein"])
@pytest.mark.parametrize("form", ["comfyui with alphas", "kohya, diffusers' names"])
def test_so_it_is_where_it_is_fused(
    folders: dict[str, Path], tmp_path: Path, family: str, form: str
) -> None:
    pipeline = load_pipeline(str(folders[family]))
    network = getattr(pipeline, family_of(pipeline).denoiser)
    layers, key, ends, alpha = FORMS[form]
    state, added = made(layers(family, network), network, key, ends, alpha)
    save(state, tmp_path / "x.safetensors")
    assert_fused(folders[family], pipeline, tmp_path / "x.safetensors", added)


def other_points(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each linear layer a 1x1 convolution, and the reverse."""
    return {
        name: value.flatten(1)
        if value.ndim == 4 and value.shape[2:] == (1, 1)
        else value[..., None, None]
        if value.ndim == 2
        else value
        for name, value in state.items()
    }


@pytest.mark.parametrize("form", ["kohya, diffusers' names", "diffusers with alphas", "comfyui"])
@pytest.mark.parametrize("family", ["sd", "sd2"])
def test_a_point_is_a_linear_layer_and_the_reverse(
    folders: dict[str, Path], tmp_path: Path, family: str, form: str
) -> None:
    pipeline: Any = load_pipeline(str(folders[family]))
    layers, key, ends, alpha = FORMS[form]
    state, added = made(layers(family, pipeline.unet), pipeline.unet, key, ends, alpha)
    state = {key.replace("{part}", "unet"): value for key, value in state.items()}
    save(other_points(state), tmp_path / "x.safetensors")
    assert_read(pipeline, tmp_path / "x.safetensors", added)


@pytest.mark.parametrize("form", ["kohya, diffusers' names", "diffusers with alphas", "comfyui"])
def test_a_kernel_that_lies_flat_is_the_kernel(
    folders: dict[str, Path], tmp_path: Path, form: str
) -> None:
    pipeline: Any = load_pipeline(str(folders["sd"]))
    layers, key, ends, alpha = FORMS[form]
    state, added = made(layers("sd", pipeline.unet), pipeline.unet, key, ends, alpha)
    laid = {
        key.replace("{part}", "unet"): v.flatten(1) if v.ndim else v for key, v in state.items()
    }
    assert any(factor.shape[2:] == (3, 3) for factor in state.values())
    save(laid, tmp_path / "x.safetensors")
    assert_read(pipeline, tmp_path / "x.safetensors", added)


@pytest.mark.parametrize("end", ["", ".weight"])
def test_a_doras_lengths_are_divided_with_its_rows(
    folders: dict[str, Path], tmp_path: Path, end: str
) -> None:
    pipeline = load_pipeline(str(folders["flux-dev"]))
    network = pipeline.transformer
    _, key, ends, alpha = FORMS["comfyui with alphas"]
    state, added = made(published("flux-dev", network), network, key, ends, alpha)
    wanted = {}
    for name, rows in published("flux-dev", network).items():
        sums = [network.get_submodule(row).weight.detach() + added[row] for row in rows]
        lengths = torch.rand(sum(map(len, sums))) + 0.5
        state[f"{key(name)}.lora_magnitude_vector{end}"] = lengths
        parts = lengths.split([len(value) for value in sums])
        for row, value, long in zip(rows, sums, parts, strict=True):
            wanted[row] = long[:, None] * value / value.norm(dim=1, keepdim=True)
    save(state, tmp_path / "x.safetensors")
    source = WithLora(str(folders["flux-dev"]), tmp_path / "x.safetensors", 1.0)
    fused: Any = load_pipeline(source).transformer
    for name, value in wanted.items():
        torch.testing.assert_close(fused.get_submodule(name).weight, value, rtol=1e-4, atol=1e-5)


def test_beside_text_encoders_a_point_is_one_too(folders: dict[str, Path], tmp_path: Path) -> None:
    """By kohya's names diffusers converts a file as a whole, or not at all."""
    pipeline: Any = load_pipeline(str(folders["sd"]))
    layers, key, ends, alpha = FORMS["kohya, diffusers' names"]
    state, added = made(layers("sd", pipeline.unet), pipeline.unet, key, ends, alpha)
    encoder = pipeline.text_encoder
    text = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        path = next(
            n for n, _ in encoder.named_modules() if n.endswith(f"layers.0.self_attn.{name}")
        )
        down, up = torch.randn(2, 16), torch.randn(16, 2)
        short = f"lora_te_text_model_encoder_layers_0_self_attn_{name}"
        text |= {f"{short}.lora_down.weight": down, f"{short}.lora_up.weight": up}
        text[f"{short}.alpha"] = torch.tensor(1.0)
        added_text = 0.5 * up @ down
    file = tmp_path / "x.safetensors"
    save({**other_points(state), **text}, file)
    fused: Any = load_pipeline(WithLora(str(folders["sd"]), file, 0.5))
    after, before = (e.get_submodule(path).weight for e in (fused.text_encoder, encoder))
    torch.testing.assert_close(after, before + 0.5 * added_text)
    assert_fused(folders["sd"], pipeline, file, added)


def test_diffusers_own_files_are_read_alike(folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline: Any = load_pipeline(str(folders["sd"]))
    part = family_of(pipeline).part()
    for number, prefix in enumerate(("unet.", "diffusion_model.")):
        rows = {"mid_block.attentions.0.proj_in": ["mid_block.attentions.0.proj_in"]}
        state, _ = made(rows, pipeline.unet, dotted(prefix), A, None)
        save_file(state, tmp_path / f"{number}.safetensors")
        assert is_read_alike(pipeline, part, tmp_path / f"{number}.safetensors") is (number == 0)


@pytest.mark.parametrize("family", ["klein", "sd"])
def test_what_has_no_place_at_all_is_refused(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """Of FLUX.2 diffusers leaves out what its conversion has no rule for, and says nothing."""
    factors = (torch.ones(2, 8), torch.ones(8, 2))
    names = [f"lora_unet_nowhere_at_all.{end}.weight" for end in DOWN]
    file = tmp_path / "x.safetensors"
    save_file(dict(zip(names, factors, strict=True)), file)
    pipeline = load_pipeline(str(folders[family]))
    with pytest.raises(UserError, match="is it a LoRA for another base"):
        read_lora(pipeline, family_of(pipeline).part(), file, "adapter.start")
    with pytest.raises(UserError, match="is it a LoRA for another base"):
        load_pipeline(WithLora(str(folders[family]), file, 1.0))


def test_one_layer_by_two_names_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline: Any = load_pipeline(str(folders["sd"]))
    rows = {"mid_block.attentions.0.proj_in": ["mid_block.attentions.0.proj_in"]}
    state = {}
    for prefix in ("unet.", "diffusion_model."):
        state |= made(rows, pipeline.unet, dotted(prefix), A, None)[0]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no place"):
        load_pipeline(WithLora(str(folders["sd"]), tmp_path / "x.safetensors", 1.0))


def test_two_scales_of_one_layer_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline: Any = load_pipeline(str(folders["sd"]))
    rows = {"mid_block.attentions.0.proj_in": ["mid_block.attentions.0.proj_in"]}
    state, _ = made(rows, pipeline.unet, dotted("unet."), A, 2.0)
    save_file(state, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": "{}"})
    with pytest.raises(UserError, match="and in its header too"):
        load_pipeline(WithLora(str(folders["sd"]), tmp_path / "x.safetensors", 1.0))


def test_names_of_a_published_unet_are_those_of_its_checkpoint() -> None:
    """Stable Diffusion XL's, and a shape of it with attention at every level and three a level."""
    for layers in (2, 3):
        with torch.device("meta"):
            unet = UNet2DConditionModel(
                block_out_channels=(32, 64, 64),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=layers,
                transformer_layers_per_block=[1, 2, 3],
            )
        places, found = comfy.of_unet(unet.config), published_names(unet)
        for name in own("sdxl", unet):
            assert found[places[name]] == name
