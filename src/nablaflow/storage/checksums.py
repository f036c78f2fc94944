"""SHA-256 of files and of tensors, by which what is read is known to be what was written."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_PART = 1 << 20


def of_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which might never end.
    """
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def of_parts(paths: Sequence[Path]) -> str:
    """SHA-256 of what is one thing in several files, in their order; of one file its own.

    Raises:
        OSError: one cannot be read.
    """
    found = [of_file(path) for path in paths]
    return found[0] if len(found) == 1 else of_bytes("".join(found).encode())


def of_bytes(content: bytes) -> str:
    """SHA-256 of a file's content before it is one, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def of_tensors(tensors: Mapping[str, Tensor], about: Any = None) -> str:
    """SHA-256 of names, types, shapes and values, whatever their order, and of what JSON holds."""
    import torch  # most checksums are of files, and looked at by who does not need it

    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sealed(values: Mapping[str, Any]) -> str:
    """A JSON object with the SHA-256 of all else that is in it; `unseal` reads it."""
    own = hashlib.sha256(_plain(values).encode()).hexdigest()
    return _plain({**values, "sha256": own})


def unseal(text: str) -> dict[str, Any]:
    """The object that `sealed` wrote, without its checksum.

    Raises:
        ValueError: it is not that, to the byte.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("no object")
    inner = {key: value for key, value in values.items() if key != "sha256"}
    if sealed(inner) != text:
        raise ValueError("its checksum is of another content")
    return inner


def checked(text: str) -> dict[str, Any]:
    """What `unseal` reads; an object of an older version, without a checksum, as it is.

    Raises:
        ValueError: it is none, or its checksum is of another content.
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(values, dict):
        raise ValueError("no object")
    return unseal(text) if "sha256" in values else values


def _plain(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"
