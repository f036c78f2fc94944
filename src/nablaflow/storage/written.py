"""A whole pipeline that was written here: the SHA-256 of its files, checked before they are read.

The list of them is in the `model` folder of a run, in an export that is a whole pipeline, and in
the embedded models. A digit of a scheduler's, or a word of a tokenizer's, makes other images as
well as a weight does.
"""

from __future__ import annotations

from pathlib import Path

from nablaflow.errors import UserError
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole
from nablaflow.storage.run_folder import CHECKSUMS, INDEX, MODEL_KINDS

CONFIG = "config.json"  # of one part in diffusers' form


def write_checksums(folder: Path) -> None:
    """Write them beside the index of a pipeline's folder, of that and of all in its parts.

    Of a folder that has no index and is one part, of its configuration and its weights.
    """
    parts = sorted(path for path in folder.glob("*/*") if path.suffix in MODEL_KINDS)
    index = folder / INDEX
    read = [index, *parts] if index.is_file() else [folder / CONFIG, *folder.glob("*.safetensors")]
    files = {path.relative_to(folder).as_posix(): checksums.of_file(path) for path in read}
    write_whole(folder / CHECKSUMS, checksums.sealed({"files": files}))


def check_checksums(folder: Path, part: str = "", *, field: str = "model") -> None:
    """Refuse files that are not those that were written; other folders have no checksums.

    Args:
        part: the subfolder that is all that is to be read; empty: all are.
        field: the setting that names the folder, for the message.

    Raises:
        UserError: a file is damaged or gone, or the list of them is damaged.
    """
    manifest = folder / CHECKSUMS
    if not manifest.is_file():
        return
    try:
        files = dict(checksums.unseal(manifest.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{field}: {manifest} is damaged ({type(error).__name__}); write the model again, or "
            "remove it to load the model unchecked"
        ) from None
    for name, wanted in files.items():
        file, is_read = folder / name, name.startswith(part) and name.endswith(MODEL_KINDS)
        if is_read and not (file.is_file() and checksums.of_file(file) == wanted):
            raise UserError(
                f"{field}: {file} is not what was written there; copy it again, or write the model "
                f"again; if it was changed on purpose, remove {CHECKSUMS}"
            )
