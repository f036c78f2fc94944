"""The LoRAs of the user's that a run begins with, known again by the checksums of their files."""

from __future__ import annotations

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings
from nablaflow.models.lora_file import find_lora
from nablaflow.storage import checksums


def with_checksums(config: Config, *, begun: bool) -> Config:
    """With the checksum of the LoRA that the policy starts from, for the run to record.

    Args:
        begun: there is a checkpoint, which has all that was made of the file; it may be gone.

    Raises:
        UserError: there is no such file, or another one than the run was begun with.
    """
    start, known = config.adapter.start, config.adapter.start_hash
    if start is None:
        return config
    try:
        found = _checksum(start, "adapter.start")
    except UserError:
        if begun and known is not None:
            return config
        raise
    if known is not None and found != known:
        raise UserError(
            f"adapter.start: {start} is another file than the run was begun with; give that one, "
            "or begin another run"
        )
    adapter = config.adapter.model_copy(update={"start_hash": found})
    return config.model_copy(update={"adapter": adapter})


def _checksum(path: str, setting: str) -> str:
    file = find_lora(path, setting)
    try:
        return checksums.of_file(file)
    except OSError as error:
        raise UserError(f"{setting}: {file} cannot be read ({error.strerror})") from error


def as_begun(adapter: AdapterSettings) -> AdapterSettings:
    """The adapter of a run that has a checkpoint: what it starts from is read no more."""
    return adapter.model_copy(update={"start": None})
