"""What `nf.align` uses for the settings that a recipe would have to name."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "optimizer": {"learning_rate": 3e-3, "schedule": "cosine", "warmup": 5},  # as the demo has it
    "training": {
        "updates": 200,
        "prompts_per_update": 8,
        "images_per_prompt": 4,
        "transition_fraction": 0.2,
    },
}
