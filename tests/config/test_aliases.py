"""Who types another program's name for a setting is told this one's; it is not read as one."""

from __future__ import annotations

import pytest

from nablaflow.config.aliases import ALIASES
from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.errors import UserError

SETTINGS = {
    "reward": "warmth",
    "prompts": ["a circle"],
    "output_dir": "run",
    "method": {"name": "residual-nabla-db", "beta": 1.0},
    "training": {
        "updates": 1,
        "prompts_per_update": 1,
        "images_per_prompt": 2,
        "transition_fraction": 1.0,
    },
}


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(apply_overrides(SETTINGS, overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optimizer.lr=1e-3", "optimizer.learning_rate"),
        ("lr=1e-3", "optimizer.learning_rate"),
        ("training.lr=1e-3", "optimizer.learning_rate"),
        ("steps=50", "sampler.steps"),
        ("max_train_steps=100", "training.updates"),
        ("batch_size=4", "training.prompts_per_update"),
        ("training.train_batch_size=4", "training.micro_batch"),
        ("num_inference_steps=50", "sampler.steps"),
        ("sampler.num_inference_steps=50", "sampler.steps"),
        ("guidance_scale=7.5", "sampler.guidance_scale"),
        ("lora_rank=8", "adapter.rank"),
        ("adapter.target_modules=[to_q]", "adapter.targets"),
        ("mixed_precision=bf16", "training.precision"),
    ],
)
def test_the_line_names_the_setting_that_is_meant(typed: str, meant: str):
    key = typed.partition("=")[0]
    assert refusal(typed) == f"{key}: unknown key; did you mean {meant}?"


@pytest.mark.parametrize("meant", sorted(set(ALIASES.values())))
def test_what_is_suggested_is_a_setting(meant: str):
    """A value that no setting takes is refused as a value, not as a key."""
    assert "unknown key" not in refusal(f"{meant}=[[]]")
