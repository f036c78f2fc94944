"""What was found of references before, from their samples: shipped with a model, or in a cache."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from nablaflow import nano
from nablaflow.evaluation.shares import all_of_them
from nablaflow.storage.cached import cache_folder, key_of, read_cached, write_cached


def find_kept(purpose: str, key: str) -> Mapping[str, Tensor] | None:
    """The tensors that are shipped or cached, for every process or for none.

    Args:
        key: of all that they depend on, see `nablaflow.evaluation.bank.states_key`.
    """
    path = _shipped(key) or _cached(purpose, key)
    found = read_cached(path, key) if path.is_file() else None
    return found if all_of_them(found is not None) else None


def keep(purpose: str, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Write them to the cache; a run that has come this far does not fail for a full disk."""
    with suppress(OSError):
        write_cached(_cached(purpose, key), tensors, key)


def _cached(purpose: str, key: str) -> Path:
    return cache_folder() / f"{purpose}-{key}.safetensors"


def _shipped(key: str) -> Path | None:
    own = nano.evaluation_path, nano.guard_path, nano.value_path
    ship = (nano.bank_path, nano.kernels_path, *own)
    paths = (path(model) for model in nano.MODELS for path in ship)
    return next((path for path in paths if path.is_file() and key_of(path) == key), None)
