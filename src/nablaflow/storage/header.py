"""The header of a safetensors file, its metadata in order: the library's is another each time.

A file is eight bytes with the header's length, the header in JSON, padded with spaces, and the
tensors, whose places in it do not depend on the header.
"""

from __future__ import annotations

import json
from pathlib import Path

from nablaflow.storage.files import write_whole

_METADATA = "__metadata__"


def in_order(content: bytes) -> bytes:
    """The same file, the same for the same tensors and metadata."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if _METADATA in header:
        header[_METADATA] = dict(sorted(header[_METADATA].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def put_in_order(path: Path) -> None:
    """Rewrite a file so, whole or not at all."""
    write_whole(path, in_order(path.read_bytes()))
