"""The flow-score network."""

import pytest
import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models import Condition, FlowSettings, UNetFlowScore

WIDTH = 12


def build(**settings: object) -> UNetFlowScore:
    torch.manual_seed(0)
    width = int(settings.pop("width", WIDTH))
    return UNetFlowScore(FlowSettings(**{"channels": [8, 16], **settings}), 4, 8, width)


@torch.no_grad()
def after_training(flow: UNetFlowScore) -> UNetFlowScore:
    generator = torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return flow.eval()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    hidden = torch.randn(2, 3, WIDTH, generator=generator)
    return x, torch.tensor([1, 951]), Condition(hidden)


def test_it_is_zero_before_training_and_has_a_gradient(
    inputs: tuple[Tensor, Tensor, Condition],
) -> None:
    flow = build()
    scores = flow(*inputs)
    assert scores.shape == inputs[0].shape
    assert not scores.any()
    (scores - 1.0).square().sum().backward()
    assert flow.unet.conv_out.weight.grad.abs().max() > 0


def test_it_follows_state_step_and_prompt(inputs: tuple[Tensor, Tensor, Condition]) -> None:
    x, timestep, prompt = inputs
    assert prompt.hidden is not None
    flow = after_training(build())
    with torch.no_grad():
        before = flow(x, timestep, prompt)
        for changed in (
            flow(x + 0.5, timestep, prompt),
            flow(x, timestep.flip(0), prompt),
            flow(x, timestep, Condition(prompt.hidden + 0.5)),
        ):
            assert (changed - before).abs().max() > 1e-4


def test_a_prompt_that_is_switched_off_is_ignored(inputs: tuple[Tensor, Tensor, Condition]) -> None:
    x, timestep, prompt = inputs
    flow = after_training(build(prompt_conditioned=False))
    with torch.no_grad():
        assert prompt.hidden is not None
        other = Condition(prompt.hidden.flip(0) * 3)
        assert torch.equal(flow(x, timestep, prompt), flow(x, timestep, other))


def test_an_unconditional_model_has_a_flow_score(inputs: tuple[Tensor, Tensor, Condition]) -> None:
    x, timestep, _ = inputs
    flow = after_training(build(width=0))
    with torch.no_grad():
        scores = flow(x, timestep, Condition())
    assert scores.isfinite().all()
    assert scores.abs().max() > 0


def test_half_precision_prompts_give_float32_scores(
    inputs: tuple[Tensor, Tensor, Condition],
) -> None:
    x, timestep, prompt = inputs
    flow = after_training(build())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert prompt.hidden is not None
        half = Condition(prompt.hidden.bfloat16())
        assert flow(x, timestep, half).dtype == torch.float32


@pytest.mark.parametrize("channels", [[16], [8, 16], [40, 48], [8, 8, 8, 8]])
def test_any_channels_that_fit_the_state_will_do(
    channels: list[int], inputs: tuple[Tensor, Tensor, Condition]
) -> None:
    assert build(channels=channels)(*inputs).shape == inputs[0].shape


def test_more_levels_than_the_state_has_pixels_for_are_refused() -> None:
    with pytest.raises(UserError, match=r"flow\.channels: 5 levels do not fit states of 8 pixels"):
        build(channels=[8] * 5)
