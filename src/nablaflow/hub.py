"""Weights from the hub or from disk: fetched once, read without pickle, checked key by key.

Files are cached by huggingface_hub (``HF_HOME`` moves the cache, ``HF_HUB_OFFLINE=1`` forbids the
network). What is fetched is announced with its size on standard error, before it begins.
"""

from __future__ import annotations

import fnmatch
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nablaflow.errors import UserError

SHOWN_KEYS = 3
"""Names of a kind that a message about a checkpoint's keys gives; the count says the rest."""

Source = str | Path


def fetch_file(
    repo: str,
    name: str,
    *,
    revision: str | None = None,
    local: Source | None = None,
    field: str = "weights",
) -> Path:
    """One file: ``local`` if given, else from the cache, else from the hub.

    Args:
        repo: id on the hub, ``owner/name``.
        name: of the file in it, with its folders.
        revision: branch, tag or commit; None is the default branch.
        local: the file itself, or a folder that holds ``name``.
        field: what a message calls the setting that ``local`` comes from.

    Raises:
        UserError: there is no such file, or it is not cached and the hub cannot be reached.
    """
    if local is not None:
        return _local_file(Path(local).expanduser(), name, field)
    wanted = _Wanted(repo, (name,), revision, field)
    try:
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        wanted.announce()
    except HFValidationError as error:
        raise wanted.refusal(error) from error
    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except Exception as error:  # requests, httpx and the hub have many kinds for one cause
        raise wanted.refusal(error) from error


def fetch_folder(
    repo: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    local: Source | None = None,
    field: str = "weights",
) -> Path:
    """A folder with the files of a repository that match ``patterns``, and no others.

    Args:
        repo: id on the hub, ``owner/name``.
        patterns: names of files, or shell patterns of them; each must have a match.
        revision: branch, tag or commit; None is the default branch.
        local: a folder on disk in its place.
        field: what a message calls the setting that ``local`` comes from.

    Raises:
        UserError: a file is missing, or not cached while the hub cannot be reached.
    """
    if local is not None:
        return _local_folder(Path(local).expanduser(), patterns, field)
    wanted = _Wanted(repo, tuple(patterns), revision, field)
    cached = _cached_folder(repo, patterns, revision, wanted)
    if cached is not None:
        return cached
    wanted.announce()
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # as above
        raise wanted.refusal(error) from error
    missing = _without_match(folder, patterns)
    if missing:
        # Without a connection the hub's client gives what is cached, whole or not.
        raise wanted.unreachable(f"has no {', '.join(missing)} {wanted.at}")
    return folder


def is_local(source: str) -> bool:
    """Whether a source is meant as a path on disk and not as an id on the hub."""
    looks_so = source.startswith((".", "/", "~")) or source.count("/") != 1
    return looks_so or Path(source).expanduser().exists()


# --- reading --------------------------------------------------------------------------------------


def read_weights(path: Path, *, inside: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a file, on the processor; nothing in it is executed.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote, read with ``weights_only=True``.
        inside: key under which such a file keeps the tensors, if not at its top.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise _unreadable(path, error) from error
    if inside is not None:
        if not isinstance(found, Mapping) or inside not in found:
            raise UserError(f"{path} has no {inside!r}; give the checkpoint as it was published")
        found = found[inside]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"{path} holds no named tensors; give a state_dict")
    return {str(name): value for name, value in found.items()}


def check_keys(wanted: Iterable[str], found: Iterable[str], where: Source) -> None:
    """Compare the names of a checkpoint's tensors with those that a network has.

    Args:
        where: the file, for the message.

    Raises:
        UserError: some are missing or unknown; it gives the first of each kind and their number.
    """
    wanted, found = set(wanted), set(found)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    parts = [
        f"{len(names)} {what} ({_few(names)})"
        for names, what in ((missing, "missing"), (extra, "unknown"))
        if names
    ]
    if parts:
        raise UserError(
            f"{where} does not fit, keys are {' and '.join(parts)}; "
            "give the checkpoint of this network, as it was published"
        )


def load_weights(network: torch.nn.Module, state: Mapping[str, Tensor], where: Source) -> None:
    """Put a checkpoint into a network, every tensor of it and nothing else.

    Raises:
        UserError: a name or a shape differs.
    """
    own = network.state_dict()
    check_keys(own, state, where)
    wrong = [name for name, value in own.items() if value.shape != state[name].shape]
    if wrong:
        first, count = wrong[0], len(wrong)
        raise UserError(
            f"{where} does not fit, {count} of its tensors have another shape ({first}: "
            f"{tuple(state[first].shape)}, not {tuple(own[first].shape)}); "
            "give the checkpoint of this network"
        )
    network.load_state_dict(dict(state))


def _unreadable(path: Path, error: Exception) -> UserError:
    lines = str(error).strip().splitlines()
    reason = lines[0][:120] if lines else type(error).__name__
    return UserError(f"{path} cannot be read as weights ({reason}); get it again")


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_KEYS]) + (", …" if len(names) > SHOWN_KEYS else "")


# --- fetching -------------------------------------------------------------------------------------


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
    repo: str, patterns: Sequence[str], revision: str | None, wanted: _Wanted
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


class _Wanted:
    """Files of a repository: what is said of them before fetching, and when that fails."""

    def __init__(
        self, repo: str, patterns: tuple[str, ...], revision: str | None, field: str
    ) -> None:
        self.repo, self.patterns, self.revision, self.field = repo, patterns, revision, field

    @property
    def at(self) -> str:
        return "on its default branch" if self.revision is None else f"at {self.revision}"

    def announce(self) -> None:
        """Say on standard error what will be fetched; one process of each machine does."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return
        size = self._size()
        told = f", {size / 1e6:,.0f} MB" if size else ""
        text = f"downloading {', '.join(self.patterns)} of {self.repo}{told}"
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)

    def refusal(self, error: Exception) -> UserError:
        """What went wrong, in one line with the remedy."""
        if isinstance(error, HFValidationError):
            return UserError(f"{self.field}: {self.repo!r} is neither a path nor a hub id")
        if isinstance(error, GatedRepoError | RepositoryNotFoundError):
            return UserError(
                f"{self.field}: {self.repo} is not on the hub, or needs a login: check the id, "
                "or accept its terms there and run `hf auth login`"
            )
        if isinstance(error, RevisionNotFoundError):
            return UserError(f"revision: {self.repo} has no {self.revision}; check it on the hub")
        # Not in the cache and no connection is an error of the same family, so it goes first.
        missing = isinstance(error, EntryNotFoundError)
        if missing and not isinstance(error, LocalEntryNotFoundError):
            return UserError(f"{self.repo} has no {', '.join(self.patterns)} {self.at}")
        return self.unreachable(f"({', '.join(self.patterns)}) is not in the cache")

    def unreachable(self, what: str) -> UserError:
        """Nothing can be fetched here; ``what`` goes on from the repository's name."""
        return UserError(
            f"{self.repo} {what}, and the hub cannot be reached: run `{self._command()}` where it "
            f"can, and give {self.field}=FOLDER"
        )

    def _command(self) -> str:
        named = all(not set(pattern) & set("*?[") for pattern in self.patterns)
        files = " ".join(self.patterns if named else [f"--include {p!r}" for p in self.patterns])
        revision = "" if self.revision is None else f" --revision {self.revision}"
        return f"hf download {self.repo} {files}{revision} --local-dir FOLDER"

    def _size(self) -> int:
        """Bytes on the hub, 0 if it does not say; then the download itself tells why."""
        try:
            info = HfApi().model_info(self.repo, revision=self.revision, files_metadata=True)
        except Exception:  # as above
            return 0
        return sum(
            file.size or 0
            for file in info.siblings or []
            if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in self.patterns)
        )
