"""Files of a run folder read as data: nothing in them is believed to be well formed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LARGEST = 2**22  # bytes of a text file that are read


def text_of(path: Path) -> str:
    """A text file of the folder itself; nothing where it is none, a link, or too large."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def json_of(path: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where the file holds none."""
    try:
        found = json.loads(text_of(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def yaml_of(text: str) -> Mapping[str, Any]:
    """A YAML mapping; an empty one where the text is none."""
    try:
        found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def inside(value: Any, *keys: str) -> Any:
    """What lies under some keys; None where there is no such place."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: Any, *keys: str) -> float | None:
    """A finite number under some keys."""
    found = inside(value, *keys)
    finite = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if finite and abs(found) < 1e300 and math.isfinite(found) else None


def numbers(column: Mapping[str, Any]) -> dict[str, float]:
    """All that is a finite number."""
    found = {key: number(column, key) for key in column}
    return {key: value for key, value in found.items() if value is not None}
