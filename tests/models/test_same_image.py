"""The check in a stock pipeline: in float32 without a float32 copy, on the model's own weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nablaflow.errors import ExportError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.export import save_policy
from nablaflow.models.raised import computing_in_float32, looking_like_float32
from nablaflow.models.same_image import check_same_image
from tests.support.pipelines import perturb, stable_diffusion

CPU = torch.device("cpu")


class Network(nn.Module):
    """A layer's call, a weight of its own, and a cast to the precision of another's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)
        self.shift = nn.Parameter(torch.randn(2))
        self.register_buffer("scale", torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).to(self.second.weight.dtype)
        return self.second(hidden) * self.scale + self.shift


def test_half_precision_computes_as_its_copy_in_float32_would() -> None:
    network = Network().bfloat16().requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    places = [value.data_ptr() for value in network.state_dict().values()]
    x = torch.randn(4, 3)
    raised = copy.deepcopy(network).float()
    raised.second.weight.data = raised.second.weight.data.bfloat16()  # as its reader finds it
    hidden = raised.first(x).bfloat16().float()
    expected = hidden @ network.second.weight.float().T + network.second.bias.float()
    with computing_in_float32(network):
        found = network(x)
        assert network.dtype == torch.float32
        assert str(type(network)) == str(Network)
    torch.testing.assert_close(found, expected * raised.scale + raised.shift)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert [value.data_ptr() for value in network.state_dict().values()] == places
    assert type(network) is Network
    assert network(x.bfloat16()).dtype == torch.bfloat16


def test_weights_are_back_where_a_call_failed() -> None:
    network = Network().bfloat16()
    with pytest.raises(RuntimeError), computing_in_float32(network):
        network(torch.randn(4, 7))
    assert {value.dtype for value in network.state_dict().values()} == {torch.bfloat16}
    assert type(network) is Network


def test_what_looks_like_float32_takes_no_memory_and_is_back_afterwards() -> None:
    network = Network().bfloat16()
    before = copy.deepcopy(network.state_dict())
    with looking_like_float32(network):
        for value in network.parameters():
            assert value.dtype == torch.float32
            assert value.untyped_storage().nbytes() == 4
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pretrained_weights_that_have_moved_are_no_base_for_a_lora(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = tmp_path / "model"
    stable_diffusion().save_pretrained(folder)
    pipeline = load_pipeline(str(folder), dtype, exact_decoder=True)
    model = load_model(pipeline, SamplerSettings(), AdapterSettings(), CPU)
    perturb(model.network)
    lora = save_policy(model, str(folder), tmp_path)
    base = next(value for value in model.network.parameters() if not value.requires_grad)
    base.data[0] += 1.0
    with pytest.raises(ExportError, match="no longer what was loaded, at conv_in"):
        check_same_image(model, str(folder), lora, as_lora=True)
