"""What `nf.align` and `nablaflow demo` use for settings that a recipe would have to name."""

from __future__ import annotations

from typing import Any

from nablaflow.errors import UserError, nearest
from nablaflow.nano.scenes import SHAPES

OPTIMIZER: dict[str, Any] = {"learning_rate": 3e-3, "schedule": "cosine", "warmup": 5}

DEFAULTS: dict[str, Any] = {"optimizer": OPTIMIZER, "training": {}}
"""Of `nf.align`; what is not here has its group's own."""

PROMPTS = [f"a {shape}" for shape in SHAPES]
"""They name the shape and leave hue, position, size and background free."""

BANK = 2048 * len(PROMPTS)

BETAS = {"warmth": 4.0, "preference": 0.25}
"""The demo's rewards; each tilt fits the reward's own unit."""


SAMPLERS: dict[str, dict[str, Any]] = {
    "nano": {"name": "ddim", "steps": 10},
    "flow": {
        "name": "memoryless",
        "steps": 10,
        "variance": "analytic",
        "max_sequence_length": 16,
    },
}
"""The demo's models, which are the embedded ones. Flow matching ends without noise: with the
posterior's variance alone its last steps have nearly none, and a divergence of 100 nats."""

BANKS = {"nano": BANK, "flow": BANK // 2}


def demo_settings(reward: str = "warmth", model: str = "nano") -> dict[str, Any]:
    """The demo's configuration; docs/benchmarks.md has what it was measured to do.

    Args:
        reward: ``warmth``, or ``preference``.
        model: ``nano``, or ``flow``.

    Raises:
        UserError: another reward, or another model.
    """
    if model not in SAMPLERS:
        raise UserError(
            f"--model: {model!r} is none of the demo's; {nearest(model, SAMPLERS)} "
            "(nablaflow train takes a recipe with any other)"
        )
    if reward not in BETAS:
        raise UserError(
            f"--reward: {reward!r} is none of the demo's; {nearest(reward, BETAS)} "
            "(reward=… takes any other)"
        )
    return {
        "model": model,
        "reward": reward,
        "prompts": PROMPTS,
        "output_dir": "runs/demo",
        "method": {"name": "residual-nabla-db", "beta": BETAS[reward]},
        "sampler": SAMPLERS[model],
        "adapter": {"rank": 16},
        "optimizer": OPTIMIZER,
        "training": {
            "updates": 60,
            "prompts_per_update": 4,
            "images_per_prompt": 8,
            "transition_fraction": 0.2,
            "checkpoint_every": 25,
            "sample_every": 25,
        },
        "guard": {
            "every": 25,
            "n": 32,
            "held_out": {"reward": "contrast"},
            "max_kl": 30.0,
            "action": "roll-back",
        },
        "evaluation": {"n": 512, "batch": 64, "bank": BANKS[model]},
    }
