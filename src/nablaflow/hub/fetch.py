"""Files and folders, from disk, from the cache or from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from nablaflow.errors import UserError
from nablaflow.hub.tries import untold_tries
from nablaflow.hub.wanted import Wanted
from nablaflow.places import at_home

HubSource = str | Path

# The eldest is the error of the client below, requests or one of httpx's versions. A failed
# download of hf_xet is a RuntimeError; anything else is a fault of this package's own.
CLIENT_ERROR = [kind for kind in HfHubHTTPError.__mro__ if kind.__module__ != "builtins"][-1]
FAILURES: tuple[type[Exception], ...] = (CLIENT_ERROR, HFValidationError, OSError, RuntimeError)

WEIGHTS_ENDINGS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")


def fetch_file(
    repo: str,
    name: str,
    *,
    revision: str | None = None,
    local: HubSource | None = None,
    field: str | None = "weights",
) -> Path:
    """One file: ``local`` if given, else from the cache, else from the hub.

    Args:
        repo: id on the hub, ``owner/name``.
        name: of the file in it, with its folders.
        revision: branch, tag or commit; None is the default branch.
        local: the file itself, or a folder that holds ``name``.
        field: what a message calls the setting that ``local`` comes from; None if there is none.

    Raises:
        UserError: there is no such file, it is not cached and the hub cannot be reached, or the
            cache cannot be written.
    """
    if local is not None:
        return _local_file(at_home(local), name, field or "weights")
    wanted = Wanted(repo, (name,), revision, field)
    try:
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        wanted.announce()
    except HFValidationError as error:
        raise wanted.refusal(error) from error
    try:
        with untold_tries():
            return Path(hf_hub_download(repo, name, revision=revision))
    except FAILURES as error:
        raise wanted.refusal(error) from error


def fetch_folder(
    repo: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    local: HubSource | None = None,
    field: str | None = "weights",
) -> Path:
    """A folder with the files of a repository that match ``patterns``, and no others.

    Args:
        repo: id on the hub, ``owner/name``.
        patterns: names of files, or shell patterns of them; each must have a match.
        revision: branch, tag or commit; None is the default branch.
        local: a folder on disk in its place.
        field: what a message calls the setting that ``local`` comes from; None if there is none.

    Raises:
        UserError: a file is missing, it is not cached while the hub cannot be reached, or the
            cache cannot be written.
    """
    if local is not None:
        return _local_folder(at_home(local), patterns, field or "weights")
    wanted = Wanted(repo, tuple(patterns), revision, field)
    cached = _cached_folder(repo, patterns, revision, wanted)
    if cached is not None:
        return cached
    wanted.announce()
    try:
        with untold_tries():
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except FAILURES as error:
        raise wanted.refusal(error) from error
    missing = _without_match(folder, patterns)
    if missing:
        # Without a connection the hub's client gives what is cached, whole or not.
        raise wanted.unreachable(f"has no {', '.join(missing)} {wanted.at}")
    return folder


def is_local(source: str) -> bool:
    """Whether a source is meant as a path on disk and not as ``owner/name[@revision]`` on the hub.

    It is a path if it looks like none of the hub's, ends as a file of weights does, or exists.
    """
    repo = source.partition("@")[0]
    if source.startswith((".", "/", "~")) or repo.count("/") != 1:
        return True
    return repo.endswith(WEIGHTS_ENDINGS) or Path(source).exists()


def _local_file(path: Path, name: str, field: str) -> Path:
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{field}: there is no file {file}; check the path")
    return file


def _local_folder(folder: Path, patterns: Sequence[str], field: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{field}: there is no folder {folder}; check the path")
    missing = _without_match(folder, patterns)
    if missing:
        raise UserError(f"{field}: {folder} has no {', '.join(missing)}; copy it there")
    return folder


def _without_match(folder: Path, patterns: Sequence[str]) -> list[str]:
    return [pattern for pattern in patterns if not any(folder.glob(pattern))]


def _cached_folder(
    repo: str, patterns: Sequence[str], revision: str | None, wanted: Wanted
) -> Path | None:
    """The snapshot if it is there with a match for every pattern: it may be of other files."""
    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), local_files_only=True
        )
    except HFValidationError as error:
        raise wanted.refusal(error) from error
    except FileNotFoundError:  # the hub's errors for what is not cached are of this kind
        return None
    return None if _without_match(Path(folder), patterns) else Path(folder)
