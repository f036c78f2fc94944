"""When two schedulers are one to the kernels here."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from nablaflow.models.schedule_mark import schedule_mark
from tests.support.schedules import STABLE_DIFFUSION

OWN = DDIMScheduler(**STABLE_DIFFUSION)
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.mark.parametrize(
    "kind",
    [
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_another_class_on_the_same_levels_has_the_same(kind: Any):
    assert schedule_mark(kind.from_config(OWN.config)) == schedule_mark(OWN)


@pytest.mark.parametrize(
    "changed",
    [
        {"timestep_spacing": "trailing"},
        {"prediction_type": "v_prediction"},
        {"beta_end": 0.02},
        {"beta_schedule": "linear"},
        {"num_train_timesteps": 500},
        {"steps_offset": 7},
        {"rescale_betas_zero_snr": True},
        {"clip_sample": True},
    ],
)
def test_what_changes_the_kernels_changes_it(changed: dict[str, Any]):
    assert schedule_mark(DDIMScheduler.from_config(OWN.config, **changed)) != schedule_mark(OWN)


def test_steps_that_were_taken_do_not():
    used = DDIMScheduler.from_config(OWN.config)
    used.set_timesteps(7)
    assert schedule_mark(used) == schedule_mark(OWN)


def test_the_shift_of_flow_matching_counts_and_its_class_does_not():
    heun = FlowMatchHeunDiscreteScheduler.from_config(FLOW.config)
    assert schedule_mark(heun) == schedule_mark(FLOW)
    other = FlowMatchEulerDiscreteScheduler.from_config(FLOW.config, shift=1.0)
    assert schedule_mark(other) != schedule_mark(FLOW)
