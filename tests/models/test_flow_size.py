"""The flow network's size beside its denoiser's, counted on the real networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nablaflow import nano
from nablaflow.models import (
    AdapterSettings,
    Condition,
    ConvLogFlow,
    FlowSettings,
    SamplerSettings,
    UNetFlowScore,
    load_model,
    load_pipeline,
    log_flow_size,
    make_flow_score,
    make_log_flow,
)
from nablaflow.models.flow_size import SHARE
from nablaflow.models.pipelines import PipelineModel

MODELS = Path(__file__).parents[2] / "benchmarks/models"
CPU = torch.device("cpu")
TOKENS, WIDTH = 16, 96  # of the embedded model


def load(folder: Path) -> PipelineModel:
    return load_model(load_pipeline(str(folder)), SamplerSettings(), AdapterSettings(), CPU)


@torch.no_grad()
def flops(network: nn.Module, *inputs: Any) -> int:
    """Fused attention on a processor counts as nothing, so it is not used."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def test_the_chosen_size_is_the_largest_within_a_quarter() -> None:
    state, prompt = torch.zeros(1, 4, 8, 8), torch.zeros(1, TOKENS, WIDTH)
    bare: Any = load_pipeline(str(nano.path()))
    denoiser = flops(bare.unet, state, 5, prompt)
    flow, line = make_flow_score(load(nano.path()), FlowSettings())
    assert flow.settings.channels == [24, 48, 96, 96]
    own = flops(flow, state, torch.tensor([5]), Condition(prompt))
    assert own <= SHARE * denoiser
    wider = UNetFlowScore(FlowSettings(channels=[32, 64, 128, 128]), 4, 8, WIDTH)
    assert flops(wider, state, torch.tensor([5]), Condition(prompt)) > SHARE * denoiser
    parameters = sum(parameter.numel() for parameter in flow.parameters())
    assert f"{parameters / 1e6:.3g} M parameters" in line
    assert f"{own / denoiser:.0%} of the denoiser's forward FLOPs" in line


def test_a_log_flow_is_the_widest_within_a_quarter(folders: dict[str, Path]) -> None:
    """Of 48 channels beside the embedded model; beside the digits' denoiser that would be half."""
    nano_model, digits = load(nano.path()), load(MODELS / "digits")
    assert parameters(make_log_flow(nano_model, 0)) == parameters(ConvLogFlow(4, 8, WIDTH, 48))
    found = make_log_flow(digits, 0)
    assert parameters(found) == parameters(ConvLogFlow(1, 8, 0, 24))
    state, step = torch.zeros(1, 1, 8, 8), torch.tensor([5])
    bare: Any = load_pipeline(str(MODELS / "digits"))
    own, denoiser = flops(found, state, step, Condition()), flops(bare.unet, state, 5)
    assert own <= SHARE * denoiser
    assert flops(ConvLogFlow(1, 8, 0, 32), state, step, Condition()) > SHARE * denoiser
    line = f"log flow: {parameters(found) / 1e6:.3g} M parameters, {own / denoiser:.0%} of"
    assert log_flow_size(digits, found).startswith(line)
    tiny = make_log_flow(load(folders["ddpm"]), 0)
    assert parameters(tiny) == parameters(ConvLogFlow(3, 8, 0, 8))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_channels_that_are_given_win(folders: dict[str, Path]) -> None:
    flow, line = make_flow_score(load(folders["ddpm"]), FlowSettings(channels=[16, 24]))
    assert flow.settings.channels == [16, 24]
    assert "channels 16, 24;" in line


@pytest.mark.parametrize("family", ["sd", "ddpm"])
def test_beside_a_tiny_denoiser_it_is_the_smallest(folders: dict[str, Path], family: str) -> None:
    model = load(folders[family])
    flow, _ = make_flow_score(model, FlowSettings())
    assert flow.settings.channels == [8]
    x = torch.zeros(2, *model.state_shape)
    assert flow(x, torch.tensor([1, 2]), model.condition(["a", "b"])).shape == x.shape
