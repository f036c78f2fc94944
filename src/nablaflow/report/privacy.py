"""What a report says of the machine it was made on: nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nablaflow.rewards.trl import TRL

_SIGN = re.compile(r"((?:^|\s[+-]\s+)(?:[\d.e]+\s*\*\s*)?)")  # between the rewards of a sum


def without_folders(text: str) -> str:
    """A path, or a sum of rewards, in which absolute paths have only their last part left.

    >>> without_folders("warmth + 0.5*/home/me/my rewards/mine.py:score")
    'warmth + 0.5*…/mine.py:score'
    >>> without_folders("trl:/home/me/mine.py:score")
    'trl:…/mine.py:score'
    """
    pieces = re.split(_SIGN, text)
    return "".join(_last_part(piece) for piece in pieces)


def _last_part(text: str) -> str:
    kind = TRL if text.startswith(TRL) else ""
    place = text.removeprefix(kind)
    absolute = place.startswith(("/", "~"))
    return f"{kind}…/{place.rstrip('/').rpartition('/')[2]}" if absolute else text


def without_folders_in(value: Any) -> Any:
    """The same for all texts and keys of plain data, but for lists of prompts."""
    if isinstance(value, Mapping):
        return {
            without_folders(str(key)): part
            if key == "prompts" and isinstance(part, list)
            else without_folders_in(part)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [without_folders_in(part) for part in value]
    return without_folders(value) if isinstance(value, str) else value
