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
    FlowSettings,
    SamplerSettings,
    UNetFlowScore,
    load_model,
    load_pipeline,
    make_flow_score,
)
from nablaflow.models.flow_size import SHARE
from nablaflow.models.pipelines import PipelineModel

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
