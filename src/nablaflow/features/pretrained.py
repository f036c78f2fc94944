"""Networks of transformers from the hub or a folder, frozen; safetensors only."""

from __future__ import annotations

from typing import Any

import torch

from nablaflow.errors import UserError
from nablaflow.features.contract import frozen
from nablaflow.hub import check_keys, fetch_folder

FILES = ("config.json", "model.safetensors")


def load_pretrained(
    kind: Any, name: str, repo: str, weights: str | None, device: torch.device
) -> torch.nn.Module:
    """A network of ``kind``, from ``weights`` if given, else from ``repo``.

    Args:
        kind: class of transformers.
        name: of the features, for messages.

    Raises:
        UserError: it cannot be found or read, or weights are missing in it.
    """
    folder = fetch_folder(repo, FILES, local=weights)
    try:
        network, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # the libraries raise many kinds for one cause: unreadable files
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"features {name}: {folder} cannot be read ({reason}); get it again"
        ) from error
    check_keys(report["missing_keys"], (), folder / FILES[1])
    return frozen(network, device)
