"""What `nablaflow demo` runs: the embedded model, warm colours, prompts that leave colour free."""

from __future__ import annotations

from typing import Any

from nablaflow.nano.scenes import SHAPES

PROMPTS = [f"a {shape}" for shape in SHAPES]
"""They name the shape and leave hue, position, size and background free."""

BANK = 2048 * len(PROMPTS)


def demo_settings() -> dict[str, Any]:
    """The demo's configuration; docs/benchmarks.md has what it was measured to do."""
    return {
        "model": "nano",
        "reward": "warmth",
        "prompts": PROMPTS,
        "output_dir": "runs/demo",
        "method": {
            "name": "residual-nabla-db",
            "beta": 4.0,
            "gamma": 1.5,
            "forward_looking_predictor": "reference",
            "reverse_weight": 0.0,
        },
        "sampler": {"name": "ddim", "steps": 10},
        "adapter": {"rank": 16},
        "flow": None,
        "optimizer": {"learning_rate": 3e-3, "schedule": "cosine", "warmup": 5},
        "training": {
            "updates": 150,
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
        },
        "evaluation": {"n": 512, "batch": 64, "bank": BANK},
    }
