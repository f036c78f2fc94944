"""A DoRA by kohya's names: what it adds to whole weights, which every reader adds alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.formats import KOHYA_FILE, write_kohya, write_policy
from nablaflow.models.pipelines import PipelineModel
from tests.support import comfy
from tests.support.flow_parts import SMALL
from tests.support.pipelines import perturb, render

CPU = torch.device("cpu")
EXACT = 1e-5
TARGETS = ["to_q", "to_k", "conv1", "proj_in"]


def policy(folder: Path, flow: bool = False, **adapter: Any) -> PipelineModel:
    torch.manual_seed(0)
    settings = AdapterSettings(**{"rank": 2, "alpha": 3.0, "dora": True, **adapter})
    sampler = SamplerSettings(**SMALL) if flow else SamplerSettings()
    model = load_model(load_pipeline(str(folder)), sampler, settings, CPU)
    perturb(model.network, scale=0.1)
    return model


def own_updates(model: PipelineModel) -> dict[str, Tensor]:
    """By DoRA's equation 5: m (W + s B A) over the lengths of its rows, less W."""
    layers: list[tuple[str, Any]] = list(model.network.named_modules())
    found = {}
    for name, layer in layers:
        if not hasattr(layer, "get_base_layer"):
            continue
        weight = layer.get_base_layer().weight.detach().flatten(1)
        moved = weight + layer.get_delta_weight("default").detach().flatten(1)
        lengths = layer.lora_magnitude_vector["default"].weight.detach().view(-1, 1)
        found[name] = lengths * moved / moved.norm(dim=1, keepdim=True) - weight
    return found


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_each_layer_of_a_unet_has_its_update(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    model = policy(folders[family], targets=TARGETS, rslora=True)
    unet: Any = model.pipeline.unet
    write_kohya(model, tmp_path / "kohya")
    lora, places = load_file(tmp_path / "kohya" / KOHYA_FILE), comfy.of_unet(unet.config)
    found, unused = comfy.updates(lora, places)
    expected = {places[name]: value for name, value in own_updates(model).items()}
    assert unused == []
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        torch.testing.assert_close(found[place], value, rtol=0, atol=EXACT)
        assert value.abs().max() > 1000 * EXACT


@pytest.mark.parametrize("kind", ["sd3", "flux-dev"])
def test_rows_that_are_not_adapted_stay_as_they_are(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Of the checkpoint's one layer for query, key and value."""
    model = policy(folders[kind], flow=True, targets=["attn.to_q", "attn.to_v", "ff.net.2"])
    config: Any = model.network.config
    layers = comfy.of_flow(
        kind[:4].rstrip("-"), config["num_layers"], config.get("num_single_layers", 0)
    )
    write_kohya(model, tmp_path / "kohya")
    lora = load_file(tmp_path / "kohya" / KOHYA_FILE)
    found, unused = comfy.updates(lora, {name: name for name in layers})
    own = own_updates(model)
    assert unused == []
    assert found.keys() == {place for place, rows in layers.items() if own.keys() & set(rows)}
    for place, update in found.items():
        expected = comfy.stacked(layers[place], own, model.network)
        torch.testing.assert_close(update, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_added_to_a_stock_unet_they_are_the_policy(
    folders: dict[str, Path], tmp_path: Path, strength: float
) -> None:
    """Each in the shape of its weight, as ComfyUI asks for."""
    model = policy(folders["sd"], targets=TARGETS)
    model.adapter.scale(strength)
    write_policy(model, str(folders["sd"]), tmp_path / "out", "kohya", torch.float32)
    lora = load_file(tmp_path / "out" / KOHYA_FILE)
    stock = load_pipeline(str(folders["sd"]))
    untouched = render(stock)
    for name, layer in stock.unet.named_modules():
        update = lora.pop(f"lora_unet_{name.replace('.', '_')}.diff", None)
        if update is not None:
            assert update.shape == layer.weight.shape
            layer.weight.data += update
    assert not lora
    with model.as_in_stock():
        expected = render(model.pipeline)
    torch.testing.assert_close(render(stock), expected, rtol=0, atol=1e-4)
    assert (expected - untouched).abs().max() > 0.01


def test_a_layer_without_a_name_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    model = policy(folders["sd3"], flow=True, targets=["norm1.linear"])
    with pytest.raises(UserError, match=r"--format: .*norm1\.linear.* use diffusers or merged"):
        write_kohya(model, tmp_path / "kohya")
