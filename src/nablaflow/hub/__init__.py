"""Weights from the hub or from disk: fetched once, read without pickle, checked key by key.

Files are cached by huggingface_hub (``HF_HOME`` moves the cache, ``HF_HUB_OFFLINE=1`` forbids the
network). What is fetched is announced with its size on standard error, before it begins.
"""

from __future__ import annotations

from nablaflow.hub.fetch import fetch_file, fetch_folder, is_local
from nablaflow.hub.wanted import announce
from nablaflow.hub.weights import check_keys, load_weights, read_weights

__all__ = [
    "announce",
    "check_keys",
    "fetch_file",
    "fetch_folder",
    "is_local",
    "load_weights",
    "read_weights",
]
