"""What is in a folder, as tests compare two of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def records(run: Path) -> list[dict[str, Any]]:
    """A run's figures of each update, without the seconds, which are others every time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.endswith("seconds")} for r in lines]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, by its path in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
