"""The model and the LoRAs that a run begins with, known again by the checksums of their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nablaflow.config.overrides import plain_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings
from nablaflow.models.file_mark import COMMIT, is_of_files, mark_of_files
from nablaflow.models.fused import SETTING as FUSED
from nablaflow.models.lora_file import files_of, find_lora
from nablaflow.models.lora_start import SETTING as START
from nablaflow.places import at_home
from nablaflow.storage import checksums

MARKED = {
    "model": "model_hash",
    "model_lora": "model_lora_hash",
    "adapter.start": "adapter.start_hash",
}
"""What may have another name if it is the same by its checksum."""


def newly_marked(old: Any, new: Any) -> Iterator[str]:
    """The marks of files that a run did not record when it was begun, and has now.

    One of no file is none: it was written there by accident.

    Args:
        old: its settings as plain data then.
        new: and now.
    """
    for name, mark in MARKED.items():
        found = value_at(new, mark) if value_at(new, name) is not None else None
        of_weights = mark == "model_hash" and not is_of_files(found)
        if found is not None and value_at(old, mark) is None and not of_weights:
            yield mark


def value_at(settings: Any, name: str) -> Any:
    """A setting of plain data by its name, such as ``adapter.start``; None where there is none."""
    for key in name.split("."):
        settings = (settings or {}).get(key)
    return settings


def told_of_marks(config: Config, saved: Config | None) -> list[str]:
    """Lines about what a run that goes on records from now on.

    Args:
        saved: what it was begun with; None: it is begun now.
    """
    if saved is None:
        return []
    old, new = plain_config(saved), plain_config(config)
    marks = set(newly_marked(old, new))
    return [
        f"{name}: the run was begun without a checksum of {value_at(new, name)}, so whether it is "
        f"the same as then cannot be told; {mark} is recorded, and checked from now on"
        for name, mark in MARKED.items()
        if mark in marks
    ]


def with_checksums(config: Config, saved: Config | None) -> Config:
    """With the checksums of its LoRAs, for the run to record.

    Args:
        saved: what a run that goes on was begun with; its checkpoint has all that was made of the
            LoRA that the policy starts at, so that file may be another by now, or gone.

    Raises:
        UserError: there is no such file, or another one than the run was begun with.
    """
    changed: dict[str, Any] = {}
    if config.model_lora is not None:
        found = known_lora(config.model_lora, FUSED, config.model_lora_hash)
        changed["model_lora_hash"] = found[1]
    start = config.adapter.start
    if start is not None:
        if saved is not None and (saved.adapter.start == start or _is_gone(start)):
            mark = saved.adapter.start_hash
        else:
            mark = known_lora(start, START, config.adapter.start_hash)[1]
        changed["adapter"] = config.adapter.model_copy(update={"start_hash": mark})
    return config.model_copy(update=changed)


def _is_gone(path: str) -> bool:
    return not at_home(path).exists()


def known_lora(path: str, setting: str, known: str | None) -> tuple[Path, str]:
    """The file of a LoRA and its SHA-256, that of the scales beside it included.

    Args:
        setting: that holds the path, for the message.
        known: what the SHA-256 has to be; None: nobody has recorded it yet.

    Raises:
        UserError: there is none, it cannot be read, or it is another one.
    """
    try:
        file = find_lora(path, setting)
    except UserError as error:
        if known is None:
            raise
        raise UserError(f"{error}, or give its new place ({setting}=…)") from error
    try:
        found = checksums.of_parts(files_of(file, setting))
    except OSError as error:
        raise UserError(f"{setting}: {file} cannot be read ({error.strerror})") from error
    if known not in (None, found):
        raise UserError(
            f"{setting}: {path} is another file than the run was begun with; give that one, or "
            "begin another run"
        )
    return file, found


def elsewhere(config: Config, own: Config) -> Config:
    """A run's configuration in which its model or its LoRA has another place: they are the same.

    Args:
        own: the configuration as the run has it.

    Raises:
        UserError: the run was begun without a LoRA, or is to be had without its own; or as
            `check_revision`.
    """
    check_lora_stays(config.model_lora, own)
    check_revision(config.model, own)
    marks = {"model_hash": own.model_hash, "model_lora_hash": own.model_lora_hash}
    return config.model_copy(update=marks)


def check_revision(model: str, own: Config) -> None:
    """Refuse a revision on the hub that is not the commit that a run was begun with.

    Args:
        model: as it is given now.
        own: the configuration as the run has it.

    Raises:
        UserError: it is another one.
    """
    mark = own.model_hash or ""
    asked = model != own.model and mark.startswith(COMMIT) and "@" in model
    if asked and mark_of_files(model) not in (None, mark):
        raise UserError(
            f"model: {model} is not commit {mark.removeprefix(COMMIT)} on the hub, which the run "
            "was begun with; give the hub id (model=…), which is loaded at that"
        )


def check_lora_stays(place: str | None, own: Config) -> None:
    """Refuse to give a run a LoRA, or to take its own away.

    Args:
        place: of the LoRA; None: there is none.

    Raises:
        UserError: so it is.
    """
    if place is not None and own.model_lora is None:
        raise UserError(f"{FUSED}: the run was begun without one; leave it out")
    if place is None and own.model_lora is not None:
        raise UserError(f"{FUSED}: the run's reference has one in it; leave it out")


def as_begun(adapter: AdapterSettings) -> AdapterSettings:
    """The adapter of a run that has a checkpoint: what it starts at is read no more."""
    return adapter.model_copy(update={"start": None})
