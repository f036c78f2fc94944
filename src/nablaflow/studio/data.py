"""Files of a run folder read as data: nothing in them is believed to be well formed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LARGEST = 2**22  # bytes of a text file that are read
LONGEST = 2**16  # characters of YAML


def text_of(path: Path) -> str:
    """A text file of the folder itself; nothing where it is none, a link, or too large."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def showable(text: str) -> str:
    """With what is no character, as in a file's name of other bytes, replaced."""
    return text.encode(errors="replace").decode()


def json_of(path: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where the file holds none."""
    try:
        found = json.loads(text_of(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def yaml_of(text: str) -> Mapping[str, Any]:
    """A YAML mapping; an empty one where the text is none, or too long for a configuration.

    By the loader that is written in Python: deep nesting ends the faster one, and the process.
    """
    if len(text) > LONGEST:
        return {}
    try:
        found = yaml.safe_load(text)
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
