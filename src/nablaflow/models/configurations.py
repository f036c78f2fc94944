"""The configurations of a pipeline's parts, looked at before a library is given them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError

NAMES = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "generation_config.json",
)
"""Files that libraries read beside weights, each one object.

Where one holds another value, such as a word, diffusers takes that for a model on the hub.
"""


def check_configurations(part: Path) -> None:
    """Refuse a part of which a configuration is none, or says what no network can be made by.

    Raises:
        UserError: so it is; it names the file.
    """
    for name in NAMES:
        if (part / name).is_file():
            found = _object_in(part / name)
            if name == "config.json" and found.get("quantization_config") is not None:
                raise _quantized(part, found["quantization_config"])
            _check_counts(part / name, found)
            if name == "config.json" and "pos_embed_max_size" in found:
                _check_positions(part, found)


def _object_in(path: Path) -> dict[str, Any]:
    again = f"copy the whole {path.parent.name} folder again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))  # a BOM is refused, as they do
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also of a number's digits
        reason = str(error).splitlines()[0][:100]
        raise UserError(f"model: {path} cannot be read ({reason}); {again}") from error
    if not isinstance(found, dict):
        raise UserError(f"model: {path} holds no settings by name; {again}")
    return found


MOST_LAYERS = 1000
"""Of a network; the deepest that are served have a hundred."""
MOST_TIMESTEPS = 10**6


def _check_counts(path: Path, found: Any) -> None:
    """Refuse more layers or timesteps than any model has: a library would make them for hours.

    Args:
        found: settings by name, some of which may hold others.
    """
    if not isinstance(found, dict) or path.name not in ("config.json", "scheduler_config.json"):
        return
    for name, value in found.items():
        _check_counts(path, value)
        timesteps = name == "num_train_timesteps"
        if not timesteps and "layers" not in name:
            continue
        most = MOST_TIMESTEPS if timesteps else MOST_LAYERS
        if any(number > most for number in _numbers(value)):
            what = "timesteps" if timesteps else "layers"
            raise UserError(
                f"model: {name} in {path} asks for more than {most:,} {what}, which no model has; "
                f"copy the whole {path.parent.name} folder again"
            )


def _numbers(value: Any) -> list[float]:
    """Those that a setting is, or that are in it."""
    if isinstance(value, list):
        return [number for one in value for number in _numbers(one)]
    return [value] if type(value) in (int, float) else []


def _check_positions(part: Path, found: dict[str, Any]) -> None:
    """Of Stable Diffusion 3, whose positions are made by its own size, before any is asked for."""
    size, patch = found.get("sample_size", 128), found.get("patch_size", 2)
    if type(size) is not int or type(patch) is not int or not 0 < patch <= size:
        raise UserError(
            f"model: sample_size {size!r} in {part / 'config.json'} is no number of latents, which "
            "its positions are made by; write that of the model it comes from, 128 for Stable "
            "Diffusion 3 and 3.5"
        )


def _quantized(part: Path, told: Any) -> UserError:
    kind = told.get("quant_method") if isinstance(told, dict) else told
    return UserError(
        f"model: its {part.name} is quantized ({kind}), and gradients need weights that are "
        "not; use the model that it was made from (model_quantization=nf4 has its denoiser in 4 "
        "bits)"
    )
