"""The levels of flow matching against those of diffusers' scheduler, over its options."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from nablaflow.diffusion import FlowSchedule, build_process, shift_by_tokens
from nablaflow.errors import UserError
from tests.support.schedules import FLOW, STABLE_DIFFUSION

OPTIONS: list[dict[str, Any]] = [
    {},
    {"shift": 3.0},
    {"shift": 0.6},
    {"shift": 3.0, "num_train_timesteps": 500},
    {"use_dynamic_shifting": True, "shift": 3.0},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    {"use_dynamic_shifting": True, "shift_terminal": 0.02},
    {"shift_terminal": 0.1, "shift": 2.0},
]


def sigmas_of(schedule: FlowSchedule, steps: int) -> Tensor:
    """s by k, read back from the process: sqrt(1 - a) / (sqrt(a) + sqrt(1 - a))."""
    alpha_bar = build_process(schedule, "ddim", steps, 1.0, 0.01).alpha_bar.double()
    noise = (1 - alpha_bar).sqrt()
    return noise / (alpha_bar.sqrt() + noise)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", ["trained", "even"])
@pytest.mark.parametrize("steps", [2, 5, 28])
def test_levels_and_timesteps_are_diffusers(options: dict[str, Any], grid: Any, steps: int) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**options)
    mu = 0.9 if options.get("use_dynamic_shifting") else None
    even = np.linspace(1.0, 1 / steps, steps) if grid == "even" else None
    scheduler.set_timesteps(steps, sigmas=even, mu=mu)
    schedule = FlowSchedule(dict(scheduler.config), grid, mu)
    process = build_process(schedule, "ddim", steps, 1.0, 0.01)
    torch.testing.assert_close(
        process.timestep[1:].flip(0), scheduler.timesteps, rtol=1e-6, atol=1e-3
    )
    assert process.timestep[0] == 0
    # Float32 has few digits of 1 - alpha_bar = s^2 where s is a thousandth.
    torch.testing.assert_close(
        sigmas_of(schedule, steps).flip(0), scheduler.sigmas.double(), rtol=1e-5, atol=5e-5
    )
    assert process.alpha_bar[0] == 1
    assert process.alpha_bar[-1] == 0


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 16384])
def test_the_dynamic_shift_is_the_stock_pipelines(tokens: int) -> None:
    dynamic = {"use_dynamic_shifting": True}
    config = dynamic | {"base_shift": 0.4, "max_shift": 1.3, "max_image_seq_len": 8192}
    expected = calculate_shift(tokens, 256, 8192, 0.4, 1.3)
    assert shift_by_tokens(config, tokens) == pytest.approx(expected)
    assert shift_by_tokens(dynamic, tokens) == pytest.approx(calculate_shift(tokens))
    assert shift_by_tokens(dynamic, 4096, max_shift=1.16) == pytest.approx(1.16)
    assert shift_by_tokens(config | {"use_dynamic_shifting": False}, tokens) == 0  # not read


@pytest.mark.parametrize(
    "spacing", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
)
def test_other_spacings_are_refused(spacing: str) -> None:
    with pytest.raises(UserError, match=f"model: .*{spacing} to false"):
        build_process(FlowSchedule(FLOW | {spacing: True}), "memoryless", 4, 1.0, 0.01)


def test_schedules_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler"):
        build_process(FlowSchedule(STABLE_DIFFUSION), "memoryless", 4, 1.0, 0.01)
    with pytest.raises(UserError, match="invert_sigmas"):
        build_process(FlowSchedule(FLOW | {"invert_sigmas": True}), "memoryless", 4, 1.0, 0.01)
    with pytest.raises(UserError, match=r"sampler\.steps: 1001 are more"):
        build_process(FlowSchedule(FLOW), "memoryless", 1001, 1.0, 0.01)
