"""DoRA and rsLoRA: what they compute, and that they are saved, exported and scaled as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.adapters import LoraAdapter, trainable_state
from nablaflow.models.export import save_policy
from nablaflow.models.formats import write_policy
from nablaflow.models.pipelines import PipelineModel
from tests.support.flow_parts import SMALL
from tests.support.pipelines import perturb, render

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "both": {"rslora": True, "dora": True},
}


def policy(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    sampler: SamplerSettings | None = None,
    **adapter: Any,
) -> PipelineModel:
    torch.manual_seed(0)
    settings = AdapterSettings(**{"rank": 4, "alpha": 3.0, **adapter})
    pipeline = load_pipeline(str(folder), dtype, exact_decoder=True)
    model = load_model(pipeline, sampler or SamplerSettings(), settings, CPU)
    perturb(model.network, scale=0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_saved_lora_gives_the_policys_image(
    folders: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    """With convolutions, whose lengths have another shape."""
    model = policy(folders[family], targets=["to_q", "to_out.0", "conv1"], **KINDS[kind])
    saved = save_policy(model, str(folders[family]), tmp_path)
    stock = load_pipeline(str(folders[family]))
    reference = render(stock)
    stock.load_lora_weights(saved)
    with model.as_in_stock():
        expected = render(model.pipeline)
    torch.testing.assert_close(render(stock), expected, rtol=0, atol=1e-4)
    assert (expected - reference).abs().max() > 0.01
    with model.reference():
        torch.testing.assert_close(render(model.pipeline), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "klein"])
def test_transformers_have_them_too(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    model = policy(folders[family], sampler=SamplerSettings(**SMALL), dora=True, rslora=True)
    assert save_policy(model, str(folders[family]), tmp_path).name == "lora"


def test_a_merged_export_has_dora_in_its_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    model = policy(folders["sd"], dora=True, rslora=True)
    write_policy(model, str(folders["sd"]), tmp_path / "out", "merged", torch.float32)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    with model.as_in_stock():
        expected = render(model.pipeline)
    torch.testing.assert_close(render(stock), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_a_layer_is_the_closed_form_at_every_strength(dora: bool, rslora: bool) -> None:
    """DoRA (equation 5): the lengths m over those of W + s B A, times it; at 0 the reference."""
    for strength in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3, bias=False)
        network, plain = torch.nn.Sequential(layer), layer.weight.detach().clone()
        adapter = LoraAdapter(network, 4, 3.0, ["0"], rslora=rslora, dora=dora)
        perturb(network)
        factors = {name: p.detach().clone() for name, p in network.named_parameters()}
        down = next(value for name, value in factors.items() if "lora_A" in name)
        up = next(value for name, value in factors.items() if "lora_B" in name)
        weight = plain + strength * 3.0 / (2.0 if rslora else 4.0) * up @ down
        if dora:
            own = next(value for name, value in factors.items() if "magnitude" in name)
            before = plain.norm(dim=1)
            lengths = before + strength * (own - before)
            weight = lengths[:, None] * weight / weight.norm(dim=1, keepdim=True)
        adapter.scale(strength)
        x = torch.randn(2, 5)
        torch.testing.assert_close(network(x), x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_what_has_settled_is_the_policy(dora: bool, rslora: bool) -> None:
    x, found = torch.randn(2, 5), []
    for settles in (False, True):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(5, 3, bias=False))
        adapter = LoraAdapter(network, 4, 3.0, ["0"], rslora=rslora, dora=dora)
        perturb(network)
        factor = adapter.factor
        (adapter.settle if settles else adapter.scale)(0.6)
        if settles:
            assert adapter.factor == factor
            adapter.scale(1.0)
        found.append(network(x))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_a_policy_in_bf16_is_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    model = policy(folders["sd"], torch.bfloat16, dora=True)
    assert save_policy(model, str(folders["sd"]), tmp_path).name == "lora"


@pytest.mark.parametrize("name", ["dora", "rslora"])
def test_a_fully_trained_network_has_neither(name: str) -> None:
    with pytest.raises(UserError, match=f"adapter.{name}: every weight trains"):
        AdapterSettings(**{"kind": "full", name: True})


def test_what_trains_is_copied_to_the_device_that_is_asked_for() -> None:
    """To the processor's memory also of a network that is there: training goes on beside it."""
    network = torch.nn.Linear(3, 2)
    there = trainable_state(network, torch.device("meta"))
    assert {value.device.type for value in there.values()} == {"meta"}
    for given in (None, CPU):
        kept = trainable_state(network, given)
        with torch.no_grad():
            network.bias.add_(1.0)
        torch.testing.assert_close(kept["bias"] + 1.0, network.bias.detach())
