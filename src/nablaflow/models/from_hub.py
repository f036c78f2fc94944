"""A pipeline on the hub: the folder of its files in this machine's cache, fetched if need be."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from nablaflow.errors import UserError
from nablaflow.hub.fetch import FAILURES
from nablaflow.hub.tries import untold_tries
from nablaflow.hub.wanted import Wanted
from nablaflow.models.folder import parts_in
from nablaflow.storage.run_folder import INDEX

REFUSALS = (EntryNotFoundError, *FAILURES)
CHOICES: tuple[dict[str, Any], ...] = (
    {"use_safetensors": True},
    {"use_safetensors": True, "variant": "fp16"},
    {},  # .bin too
)
"""Of files, the better first; where the hub has none of the first, the next are fetched."""


def is_hub_id(model: str) -> bool:
    """Whether a name may be one on the hub: ``owner/name``, or ``owner/name@revision``."""
    repo, at, revision = model.partition("@")
    named = not at or bool(revision)  # `owner/name@` is what an empty variable leaves
    return named and repo.count("/") == 1 and not model.startswith((".", "/", "~"))


def at_revision(model: str) -> tuple[str, str | None]:
    """The repository; and the branch, the tag or the commit, None for the default branch."""
    repo, _, revision = model.partition("@")
    return repo, revision or None


def index_on_hub(model: str) -> dict[str, Any]:
    """The list of a pipeline's parts; its weights stay there for now.

    Raises:
        UserError: there is none, or it is not in the cache and the hub cannot be reached.
    """
    return parts_in(_index(model))


def commit_on_hub(model: str) -> str:
    """The commit that a pipeline is at.

    Raises:
        UserError: as `index_on_hub`.
    """
    return _index(model).parent.name  # the cache has a folder for each


def _index(model: str) -> Path:
    repo, revision = at_revision(model)
    try:
        with untold_tries():
            return Path(hf_hub_download(repo, INDEX, revision=revision))
    except REFUSALS as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UserError(
                f"model: {model} has no {INDEX} on the hub, so it is no pipeline in diffusers "
                "format; give the base model's id, or a file of it"
            ) from error
        raise _refusal(model, error) from error


def folder_from_hub(model: str, without: Collection[str]) -> Path:
    """The folder with all files of one choice.

    Args:
        without: parts that are not needed.

    Raises:
        UserError: they cannot be fetched.
    """
    repo, revision = at_revision(model)
    failed: Exception | None = None
    for choice in CHOICES:
        try:
            with untold_tries():
                given = dict.fromkeys(without)
                found = DiffusionPipeline.download(repo, revision=revision, **choice, **given)
                return Path(found)
        except (*REFUSALS, ValueError) as error:  # the last of a variant that is not there
            failed = failed or error
    assert failed is not None
    raise _refusal(model, failed) from failed


def _refusal(model: str, error: Exception) -> UserError:
    repo, revision = at_revision(model)
    told = str(Wanted(repo, ("*",), revision, "model").refusal(error))
    return UserError(told if told.startswith("model: ") else f"model: {told}")
