"""A denoiser in 4 bits: what stock diffusers quantizes, and every gradient and file beside it."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import BitsAndBytesConfig, FluxPipeline, FluxTransformer2DModel
from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer
from torch import nn

from nablaflow.errors import UserError
from nablaflow.models import (
    AdapterSettings,
    Quantized,
    SamplerSettings,
    WithLora,
    hand_over,
    load_model,
    load_pipeline,
)
from nablaflow.models.export import save_policy
from nablaflow.models.formats import write_policy
from nablaflow.models.four_bits import Linear4bit
from nablaflow.models.live import LivePipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.quantized import quantize, quantized_told, saved_by_quantizing
from nablaflow.models.twin import without_data
from tests.support.flow_parts import SMALL
from tests.support.loras import FILE, stock_lora
from tests.support.pipelines import perturb

CPU = torch.device("cpu")


class NoBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


def test_without_the_package_one_line_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before any weights are read: the folder is none."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"model_quantization: .* pip install '.\[bitsandb"):
        load_pipeline(Quantized(str(tmp_path)))


def test_an_old_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(__version__="0.45.5"))
    with pytest.raises(UserError, match=r"0\.49 or newer, and 0\.45\.5 is here"):
        load_pipeline(Quantized(str(tmp_path)))


def test_layers_outside_of_blocks_and_of_odd_sizes_stay_as_they_are() -> None:
    pytest.importorskip("bitsandbytes")
    network = NoBlocks()
    network.blocks = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 5), nn.Conv2d(8, 8, 1)])
    quantize(network)
    kinds = [type(part) for part in (network.layer, *network.blocks)]
    assert kinds == [nn.Linear, Linear4bit, nn.Linear, nn.Conv2d]


def test_a_network_without_blocks_is_refused() -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(UserError, match="model_quantization: a NoBlocks has no linear layer"):
        quantize(NoBlocks())


def model_of(
    source: str | LivePipeline | WithLora, dtype: torch.dtype = torch.float32, **sampler: Any
) -> PipelineModel:
    settings = SamplerSettings(name="memoryless", **SMALL, **sampler)
    pipeline = load_pipeline(Quantized(source), dtype, exact_decoder=True)
    return load_model(pipeline, settings, AdapterSettings(rank=2), CPU)


def image(model: PipelineModel, pipeline: Any) -> torch.Tensor:
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    pipeline.set_progress_bar_config(disable=True)
    return model.stock_image(pipeline, "a red circle", **options)


def by_diffusers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Quantized by diffusers itself, which asks for a GPU, and cannot name the last layer alone."""
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda *_, **__: None)
    told = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["x_embedder", "context_embedder", "time_text_embed", "norm_out"],
    )
    given: dict[str, Any] = {"quantization_config": told, "device_map": {"": "cpu"}}
    given["torch_dtype"] = torch.float32
    transformer = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", **given)
    plain = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    transformer.proj_out = plain.proj_out
    bitsandbytes: Any = importlib.import_module("bitsandbytes")
    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", _by_torch)
    return FluxPipeline.from_pretrained(folder, transformer=transformer)


def _by_torch(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """In float32 by its own weights, in one row.

    The kernels for AVX-512 multiply in bf16, and take wrong scales where rows are no whole blocks.
    """
    state = copy.copy(layer.weight.quant_state)
    state.shape = torch.Size((layer.weight.quant_state.shape.numel(),))
    weights = importlib.import_module("bitsandbytes.functional").dequantize_4bit(
        layer.weight, state
    )
    return nn.functional.linear(x, weights.view(layer.weight.quant_state.shape), layer.bias)


def test_reference_and_policy_are_a_stock_pipeline_that_diffusers_quantized(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    folder = folders["flux-dev"]
    stock, model = by_diffusers(folder, monkeypatch), model_of(str(folder))
    theirs = {
        name
        for name, part in stock.transformer.named_modules()
        if isinstance(part, bitsandbytes.nn.Linear4bit)
    }
    own = {
        name.removesuffix(".base_layer")
        for name, part in model.network.named_modules()
        if isinstance(part, Linear4bit)
    }
    assert own == theirs
    with model.as_in_stock(), model.reference():
        found = image(model, model.pipeline)
    torch.testing.assert_close(found, image(model, stock), rtol=0, atol=1e-4)
    plain = image(model, load_pipeline(str(folder)))
    assert (found - plain).abs().max() > 1e-3
    perturb(model.network)
    saved = save_policy(model, Quantized(str(folder)), tmp_path)
    stock.load_lora_weights(saved)
    with model.as_in_stock():
        policy = image(model, model.pipeline)
    torch.testing.assert_close(policy, image(model, stock), rtol=0, atol=1e-4)
    assert (policy - found).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["sd3", "klein", "flux-schnell"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_save_their_lora(
    family: str, dtype: torch.dtype, folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    source = str(folders[family])
    model = model_of(source, dtype)
    perturb(model.network)
    assert save_policy(model, Quantized(source), tmp_path).name == "lora"


def test_a_policy_of_a_network_that_takes_no_lora_file_is_saved_whole(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    source = Quantized(str(folders["ddpm"]))
    pipeline = load_pipeline(source)
    model = load_model(pipeline, SamplerSettings(), AdapterSettings(rank=2), CPU)
    perturb(model.network)
    assert save_policy(model, source, tmp_path).name == "model"


def test_merged_it_is_the_policy_in_full_precision(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    source = str(folders["flux-dev"])
    model = model_of(source, torch.bfloat16)
    perturb(model.network)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    write_policy(model, Quantized(source), tmp_path / "out", "merged", torch.float32)
    after = model.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    stock = FluxPipeline.from_pretrained(tmp_path / "out")
    assert type(stock.transformer.transformer_blocks[0].attn.to_q) is nn.Linear
    base = model.network.get_submodule("transformer_blocks.0.ff.net.2")
    merged = stock.transformer.get_submodule("transformer_blocks.0.ff.net.2")
    assert torch.equal(merged.weight, base.weights().float())


def test_the_networks_gradient_of_its_state_by_finite_differences(
    folders: dict[str, Path],
) -> None:
    """And the second one: of the squared first, along a direction."""
    pytest.importorskip("bitsandbytes")
    model = model_of(str(folders["flux-dev"]), steps=4)
    model.allow_second_derivatives()
    model.checkpoint_activations()
    generator = torch.Generator().manual_seed(0)
    x, direction, weight = (
        torch.randn((1, *model.state_shape), generator=generator) for _ in range(3)
    )
    k, condition = torch.tensor([2]), model.condition(["a red circle"])

    def value(at: torch.Tensor) -> torch.Tensor:
        return (model.predict(at, k, condition).x0_hat * weight).sum().square()

    def first(at: torch.Tensor) -> torch.Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(value(at), at, create_graph=True)[0]

    step = 1e-2
    at = x.clone().requires_grad_()
    gradient = torch.autograd.grad(value(at), at, create_graph=True)[0]
    (second,) = torch.autograd.grad((gradient * direction).sum(), at)
    with torch.no_grad():
        slope = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-2, atol=1e-2)
    bend = (first(x + step * direction) - first(x - step * direction)) / (2 * step)
    torch.testing.assert_close(second, bend, rtol=2e-2, atol=2e-2 * float(second.abs().max()))


def test_a_lora_in_the_reference_is_fused_before(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = folders["flux-dev"]
    lora = stock_lora(folder, tmp_path / "lora", "transformer") / FILE
    first = WithLora(str(folder), lora, 0.7)
    found = load_pipeline(Quantized(first)).transformer.state_dict()
    wanted = quantize(load_pipeline(first).transformer).state_dict()
    other = quantize(load_pipeline(str(folder)).transformer).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    assert any(not torch.equal(value, other[name]) for name, value in found.items())


def test_a_pipeline_that_is_handed_over_stays_as_it_is(folders: dict[str, Path]) -> None:
    pytest.importorskip("bitsandbytes")
    own = FluxPipeline.from_pretrained(folders["flux-dev"])
    before = {name: value.clone() for name, value in own.transformer.state_dict().items()}
    model = model_of(hand_over(own))
    assert not any(isinstance(part, Linear4bit) for part in own.transformer.modules())
    after = own.transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "in NF4" in quantized_told(model.network)


def test_the_adapter_covers_what_it_covers_of_the_plain_network(folders: dict[str, Path]) -> None:
    pytest.importorskip("bitsandbytes")
    folder = str(folders["flux-dev"])
    settings = SamplerSettings(name="memoryless", **SMALL)
    plain = load_model(load_pipeline(folder), settings, AdapterSettings(rank=2), CPU)
    assert model_of(folder).adapter.coverage == plain.adapter.coverage


def test_its_twin_has_shapes_alone(folders: dict[str, Path]) -> None:
    pytest.importorskip("bitsandbytes")
    model = model_of(str(folders["flux-dev"]), torch.bfloat16)
    twin = without_data(model)
    held = [*twin.network.parameters(), *twin.network.buffers()]
    assert all(value.is_meta for value in held)
    layers = [part for part in twin.network.modules() if isinstance(part, Linear4bit)]
    assert layers[0].weights().dtype == torch.bfloat16


def test_what_would_be_saved_is_what_is_saved():
    """By the bytes of a network before and after, but for a table of 1,028 bytes a layer."""
    pytest.importorskip("bitsandbytes")

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(512, 1024) for _ in range(3))
            self.outside = nn.Linear(512, 512)

    def held(network: nn.Module) -> int:
        return sum(value.numel() * value.element_size() for value in network.state_dict().values())

    network = Blocks().bfloat16()
    would, before = saved_by_quantizing(network), held(network)
    assert would == pytest.approx(before - held(quantize(network)), abs=3 * 1028 + 3)
    assert saved_by_quantizing(network) == saved_by_quantizing(NoBlocks()) == 0
