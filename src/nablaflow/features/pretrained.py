"""Networks of transformers from the hub or a folder; safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nablaflow.errors import UserError
from nablaflow.features.contract import frozen
from nablaflow.hub import check_keys, fetch_folder

FILES = ("config.json", "model.safetensors")
CONSTANT = ".position_ids"
"""Ends the name of a constant that older versions of transformers saved with the weights."""


def load_pretrained(
    kind: Any,
    name: str,
    published: tuple[str, str],
    weights: str | None,
    device: torch.device,
    unused: tuple[str, ...] = (),
) -> torch.nn.Module:
    """A frozen network of ``kind``, from ``weights`` if given, else as published.

    Args:
        kind: class of transformers.
        name: of the features, for messages.
        published: a repository on the hub and a commit of it.
        unused: as in ``read_pretrained``.

    Raises:
        UserError: it cannot be found or read, or has other weights.
    """
    # Not every command has a setting for the folder, so the remedy is the cache.
    field = "weights" if weights else None
    repo, revision = published
    folder = fetch_folder(repo, FILES, revision=revision, local=weights, field=field)
    return frozen(read_pretrained(kind, folder, f"features {name}", unused), device)


def read_pretrained(kind: Any, folder: Path, where: str, unused: tuple[str, ...] = ()) -> Any:
    """A network of ``kind`` from a folder with ``FILES``, in the precision that is saved there.

    Args:
        kind: class of transformers.
        where: setting or features that the folder is of, for messages.
        unused: how names of tensors begin that are another part of the same checkpoint.

    Raises:
        UserError: it cannot be read, or weights are missing in it or too many.
    """
    from nablaflow.quiet import quiet_libraries  # loads the libraries, as ``kind`` has

    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        with quiet_libraries():
            network, report = kind.from_pretrained(folder, **options)
    except Exception as error:  # the libraries raise many kinds for one cause: unreadable files
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{where}: {folder} cannot be read ({reason}); get it again") from error
    unknown = [
        name
        for name in report["unexpected_keys"]
        if not name.startswith(unused) and not name.endswith(CONSTANT)
    ]
    check_keys(report["missing_keys"], unknown, folder / FILES[1])
    return network
