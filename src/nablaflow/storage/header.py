"""The header of a safetensors file, its metadata in order: the library's is another each time.

A file is eight bytes with the header's length, the header in JSON, padded with spaces, and the
tensors, whose places in it do not depend on the header.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nablaflow.storage.files import write_whole

_METADATA, _CHECKSUM = "__metadata__", "sha256"


def in_order(content: bytes) -> bytes:
    """The same file, the same for the same tensors and metadata."""
    header, body = _parts(content)
    if _METADATA in header:
        header[_METADATA] = dict(sorted(header[_METADATA].items()))
    return _joined(header, body)


def put_in_order(path: Path) -> None:
    """Rewrite a file so, whole or not at all, with a checksum of all else in its metadata."""
    header, body = _parts(path.read_bytes())
    header.setdefault(_METADATA, {})[_CHECKSUM] = _digest(header, body)
    write_whole(path, in_order(_joined(header, body)))


def is_whole(path: Path) -> bool:
    """Whether a file is what `put_in_order` wrote; one without a checksum is not doubted.

    Raises:
        OSError: it cannot be read.
    """
    try:
        header, body = _parts(path.read_bytes())
        known = header.get(_METADATA, {}).get(_CHECKSUM)
        return known is None or known == _digest(header, body)
    except (ValueError, AttributeError, RecursionError):
        return False


def _digest(header: dict[str, Any], body: bytes) -> str:
    metadata = {k: v for k, v in header.get(_METADATA, {}).items() if k != _CHECKSUM}
    plain = json.dumps({**header, _METADATA: metadata}, sort_keys=True)
    return hashlib.sha256(plain.encode() + body).hexdigest()


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body
