"""Tensors that can be made again, in a file with the key of what they depend on and a checksum."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nablaflow.places import at_home
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole
from nablaflow.storage.header import in_order


def cache_folder() -> Path:
    """``$NABLAFLOW_CACHE``, or ``nablaflow`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "nablaflow"
    return at_home(os.environ.get("NABLAFLOW_CACHE", default))


def key_of(path: Path) -> str | None:
    """The key in a file; None where there is none to be read."""
    return _metadata(path).get("key")


def read_cached(path: Path, key: str | None = None) -> dict[str, Tensor] | None:
    """The tensors of a file; None, and that is said, where it is damaged.

    Args:
        key: that it has to have; None without a word where it has another.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if key is not None and (file.metadata() or {}).get("key", key) != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        tensors = None
    if tensors is None or checksums.of_tensors(tensors) != _metadata(path).get("sha256"):
        print(f"{path} is damaged; what it holds is made anew", file=sys.stderr)
        return None
    return tensors


def write_cached(path: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """Write a file, whole or not at all; several processes may write the same one.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {name: value.contiguous() for name, value in tensors.items()}
    content = in_order(save(own, {"key": key, "sha256": checksums.of_tensors(own)}))
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        write_whole(beside, content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}
