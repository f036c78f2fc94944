"""Optional packages of the metrics, and weights that are at an address and not on the hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor

from nablaflow.errors import UserError, installing


def extra(module: str, name: str) -> Any:
    """A module of an optional package.

    Raises:
        UserError: it is not installed; names the extra that has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{package} cannot be imported ({error}); {installing(name)}") from error


def fetched(url: str, what: str) -> dict[str, Tensor]:
    """Weights from torch's cache, or from the address, whose file name carries their hash.

    Raises:
        UserError: they are not in the cache and could not be downloaded.
    """
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
    except (URLError, OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        raise UserError(
            f"{what}: weights not found and could not be downloaded ({type(error).__name__}); put "
            f"{url} at {place}"
        ) from error
