"""What tells a pipeline's noise levels from another's, whatever class its scheduler is of."""

from __future__ import annotations

import hashlib
import json
from inspect import signature
from typing import Any

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from nablaflow.diffusion.schedule import left_unsaid, to_convert


def schedule_mark(scheduler: Any) -> str:
    """A hash of what the kernels here read of a scheduler.

    Euler's, made from DDIM's configuration to sample otherwise, has DDIM's.
    """
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    has_betas = hasattr(scheduler, "betas")
    kind: Any = DDIMScheduler if has_betas else FlowMatchEulerDiscreteScheduler
    given = to_convert(config) if has_betas else config
    unsaid = left_unsaid(given)
    read = {
        name: field.default if name in unsaid else given.get(name, field.default)
        for name, field in signature(kind).parameters.items()
    }
    # Of these the model's own count, and no class's default.
    read["clip_sample"] = bool(config.get("clip_sample"))
    read["variance_type"] = config.get("variance_type") or "fixed_small"
    content = json.dumps(read, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:8]
