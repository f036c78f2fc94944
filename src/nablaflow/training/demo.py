"""What `nablaflow demo` runs: the embedded model, prompts that leave colour free, a reward."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError, nearest
from nablaflow.nano.scenes import SHAPES
from nablaflow.training.bank import cache_folder

PROMPTS = [f"a {shape}" for shape in SHAPES]
"""They name the shape and leave hue, position, size and background free."""

BANK = 2048 * len(PROMPTS)


StartProgress = Callable[[str, int], Callable[[int], None]]
"""``(what, total) -> told how many more are done``."""

BETAS = {"warmth": 4.0, "preference": 0.5}
"""The demo's rewards; each tilt fits the reward's own unit."""


def demo_settings(
    reward: str = "warmth", start: StartProgress = lambda what, total: lambda done: None
) -> dict[str, Any]:
    """The demo's configuration; docs/benchmarks.md has what it was measured to do.

    Args:
        reward: ``warmth``, or ``preference``, which is fitted on its first use.
        start: shows how the fit goes.

    Raises:
        UserError: another reward, or a cache that cannot be written.
    """
    if reward not in BETAS:
        raise UserError(
            f"--reward: {reward!r} is none of the demo's; {nearest(reward, BETAS)} "
            "(reward=… takes any other)"
        )
    return {
        "model": "nano",
        "reward": str(fitted_preference(start)) if reward == "preference" else reward,
        "prompts": PROMPTS,
        "output_dir": "runs/demo",
        "method": {
            "name": "residual-nabla-db",
            "beta": BETAS[reward],
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
            "max_kl": 10.0,
            "action": "roll-back",
        },
        "evaluation": {"n": 512, "batch": 64, "bank": BANK},
    }


def fitted_preference(start: StartProgress) -> Path:
    """The reward fitted to the pairs that ship with the package, kept in the user's cache.

    Raises:
        UserError: the cache cannot be written.
    """
    from nablaflow.fitting import HeadSettings, fit_folder, save
    from nablaflow.nano.judged import write_judged
    from nablaflow.nano.preferences import SHIPPED, shipped_pairs

    digest = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:12]
    root = cache_folder()
    cached = root / f"preference-{digest}.safetensors"
    if cached.is_file():
        return cached
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            write_judged(Path(folder), shipped_pairs())
            found = fit_folder(
                Path(folder), "nano", HeadSettings(), pessimism=1.0, seed=0, start=start
            )
            save(found, cached)
    except OSError as error:
        raise UserError(
            f"--reward preference: cannot write {root} ({error.strerror}); set NABLAFLOW_CACHE"
        ) from error
    return cached
