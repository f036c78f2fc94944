"""Optional packages of the metrics, and the weights of their networks, read without pickle."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nablaflow.errors import UserError


def extra(module: str, name: str) -> Any:
    """A module of an optional package.

    Raises:
        UserError: it is not installed; names the extra that has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{package} cannot be imported ({error}); pip install 'nablaflow[{name}]'"
        ) from error


def fetched(url: str, what: str) -> dict[str, Tensor]:
    """Weights from torch's cache, or from the address, whose file name carries their hash.

    Raises:
        UserError: they are not in the cache and cannot be had.
    """
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
    except (URLError, OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        raise UserError(
            f"{what}: no weights here and none to be had ({type(error).__name__}); put {url} "
            f"at {place}"
        ) from error


def read_weights(path: str | Path, what: str) -> dict[str, Tensor]:
    """Named tensors from a safetensors file, or from one of torch read with ``weights_only``.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{what}: no file {path}; give the path of its weights") from None
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{what}: {path} holds no weights ({type(error).__name__})") from error
    except Exception as error:  # torch raises its own kind of unpickling error
        raise UserError(f"{what}: {path} is no file of plain weights; nothing was run") from error
