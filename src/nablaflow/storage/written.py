"""A whole pipeline that was written here: the SHA-256 of its weights, checked before they are read.

The file with them is in the `model` folder of a run and in an export that is a whole pipeline.
"""

from __future__ import annotations

from pathlib import Path

from nablaflow.errors import UserError
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole
from nablaflow.storage.run_folder import CHECKSUMS

WEIGHTS = ".safetensors"


def write_checksums(folder: Path) -> None:
    """Write them beside the index of a pipeline's folder."""
    files = {
        path.relative_to(folder).as_posix(): checksums.of_file(path)
        for path in sorted(folder.rglob(f"*{WEIGHTS}"))
    }
    write_whole(folder / CHECKSUMS, checksums.sealed({"files": files}))


def check_checksums(folder: Path) -> None:
    """Refuse weights that are not those that were written; other folders have no checksums.

    Raises:
        UserError: a file of weights is damaged or gone, or the list of them is damaged.
    """
    manifest = folder / CHECKSUMS
    if not manifest.is_file():
        return
    try:
        files = dict(checksums.unseal(manifest.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model: {manifest} is damaged ({type(error).__name__}); write the model again, or "
            "remove it to load the weights unchecked"
        ) from None
    for name, wanted in files.items():
        file = folder / name
        if name.endswith(WEIGHTS) and not (file.is_file() and checksums.of_file(file) == wanted):
            raise UserError(
                f"model: {file} is not what was written there; copy it again, or write the model "
                "again"
            )
