"""The same tensors as the same bytes: safetensors writes a file's metadata in no fixed order."""

from __future__ import annotations

import json
import os
from pathlib import Path

ALIGNMENT = 8  # bytes; the header is padded to it with blanks, as the format has it


def sort_metadata(path: Path) -> None:
    """Write a safetensors file again, its metadata in the order of their names."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__", {})
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(ordered, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    os.replace(partial, path)
