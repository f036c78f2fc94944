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
    """Refuse a part of which a configuration is none, or says that its weights are quantized.

    Raises:
        UserError: so it is; it names the file.
    """
    for name in NAMES:
        if (part / name).is_file():
            found = _object_in(part / name)
            if name == "config.json" and found.get("quantization_config") is not None:
                raise _quantized(part, found["quantization_config"])


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


def _quantized(part: Path, told: Any) -> UserError:
    kind = told.get("quant_method") if isinstance(told, dict) else told
    return UserError(
        f"model: its {part.name} is quantized ({kind}), and gradients need weights that are "
        "not; use the model that it was made from"
    )
