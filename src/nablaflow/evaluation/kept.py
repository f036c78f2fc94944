"""Samples of references that were made before: those that ship with a model, and a cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from nablaflow import nano
from nablaflow.evaluation.shares import all_of_them
from nablaflow.storage.cached import cache_folder, key_of, read_cached, write_cached
from nablaflow.typing import Latents


def find_states(purpose: str, key: str) -> Latents | None:
    """The states that are shipped or cached, for every process or for none.

    Args:
        key: of all that they depend on, see `nablaflow.evaluation.bank.states_key`.
    """
    path = _shipped(key) or _cached(purpose, key)
    found = read_cached(path) if path.is_file() else None
    there = all_of_them(found is not None)
    return found["states"] if there and found is not None else None


def keep_states(purpose: str, key: str, states: Latents) -> None:
    """Write them to the cache; a run that has come this far does not fail for a full disk."""
    with suppress(OSError):
        write_cached(_cached(purpose, key), {"states": states}, key)


def _cached(purpose: str, key: str) -> Path:
    return cache_folder() / f"{purpose}-{key}.safetensors"


def _shipped(key: str) -> Path | None:
    ship = (nano.bank_path, nano.guard_path)
    paths = (path(model) for model in nano.MODELS for path in ship)
    return next((path for path in paths if path.is_file() and key_of(path) == key), None)
