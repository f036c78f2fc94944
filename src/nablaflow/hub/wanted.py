"""What is said of files before they are fetched, and when that fails."""

from __future__ import annotations

import errno
import fnmatch
import os
from socket import gaierror

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rich.console import Console

from nablaflow.errors import UserError

_CONNECTION = (ConnectionError, TimeoutError)


_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED)


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether there was no connection at all: no such name, no way there, or nobody answers.

    One that was slow, broke off or ran out of time is none of those.
    """
    while error is not None:
        if isinstance(error, gaierror):
            return True
        if isinstance(error, OSError) and error.errno in _NO_WAY:
            return True
        error = error.__cause__ or error.__context__
    return False


def is_first() -> bool:
    """Whether this is the process of its machine that speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def announce(text: str) -> None:
    """Say something on standard error; one process of each machine does."""
    if is_first():
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


class Wanted:
    """Files of a repository.

    Args:
        patterns: names of files, or shell patterns of them.
        field: the setting that takes a folder in their place, if there is one.
    """

    def __init__(
        self, repo: str, patterns: tuple[str, ...], revision: str | None, field: str | None
    ) -> None:
        self.repo, self.patterns, self.revision, self.field = repo, patterns, revision, field

    @property
    def at(self) -> str:
        return "on its default branch" if self.revision is None else f"at {self.revision}"

    def announce(self) -> None:
        """Say on standard error what will be fetched.

        Raises:
            UserError: the hub cannot be reached. The hub's client would try that again and again
                before it lists a repository's files, which is for a hub that is busy.
        """
        if not is_first():
            return
        try:
            size = self._size()
        except ConnectionError as error:
            raise self.refusal(error) from error
        told = f", {size / 1e6:,.0f} MB" if size else ""
        announce(f"downloading {', '.join(self.patterns)} of {self.repo}{told}")

    def refusal(self, error: Exception) -> UserError:
        """What went wrong, in one line with the remedy."""
        field = self.field or "weights"
        if isinstance(error, HFValidationError):
            return UserError(f"{field}: {self.repo!r} is neither a path nor a hub id")
        if isinstance(error, GatedRepoError | RepositoryNotFoundError):
            return UserError(
                f"{field}: {self.repo} is not on the hub, or needs a login: check the id "
                "or path, or accept its terms there and run `hf auth login`"
            )
        if isinstance(error, RevisionNotFoundError):
            return UserError(f"revision: {self.repo} has no {self.revision}; check it on the hub")
        # Not in the cache and no connection is an error of the same family, so it goes first.
        if isinstance(error, LocalEntryNotFoundError):
            return self._not_cached(error.__cause__ or error)
        if isinstance(error, EntryNotFoundError):
            return UserError(f"{self.repo} has no {', '.join(self.patterns)} {self.at}")
        return self._not_cached(error)

    def _not_cached(self, cause: BaseException) -> UserError:
        """The files are not here, and ``cause`` is why they did not come."""
        what = self.repo + self._files
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, HfHubHTTPError) and status is not None:
            return UserError(f"{what}: the hub answers status {status}; try again later")
        if isinstance(cause, OSError) and cause.errno and not isinstance(cause, _CONNECTION):
            return UserError(
                f"{what}: cannot write the cache ({os.strerror(cause.errno)}); "
                "free space, or set HF_HOME to a folder that can be written"
            )
        if isinstance(cause, RuntimeError):
            reason = " ".join(str(cause).split())[:120]
            return UserError(f"{what}: download failed ({reason}); try again")
        return self.unreachable(f"{self._files} is not in the cache".lstrip())

    @property
    def _all(self) -> bool:
        return self.patterns == ("*",)

    @property
    def _files(self) -> str:
        """In brackets, after a space; nothing where all of the repository is wanted."""
        return "" if self._all else f" ({', '.join(self.patterns)})"

    def unreachable(self, what: str) -> UserError:
        """Nothing can be fetched here; ``what`` goes on from the repository's name."""
        command = f"{self.repo} {what}, and the hub cannot be reached: run `{self._command()}"
        if self.field is None:
            return UserError(f"{command}` where it can, and copy its cache (HF_HOME) here")
        return UserError(
            f"{command} --local-dir FOLDER` where it can, and give {self.field}=FOLDER"
        )

    def _command(self) -> str:
        named = all(not set(pattern) & set("*?[") for pattern in self.patterns)
        files = self.patterns if named else [f"--include {p!r}" for p in self.patterns]
        wanted = [] if self._all else list(files)
        revision = [] if self.revision is None else [f"--revision {self.revision}"]
        return " ".join(["hf download", self.repo, *wanted, *revision])

    def _size(self) -> int:
        """Bytes on the hub, 0 if it does not say; then the download itself tells why.

        Raises:
            ConnectionError: no connection to it can be made.
        """
        try:
            info = HfApi().model_info(self.repo, revision=self.revision, files_metadata=True)
        except Exception as error:  # whatever else it is, the download meets it again
            if _is_unreachable(error):
                raise ConnectionError(str(error)) from error
            return 0
        return sum(
            file.size or 0
            for file in info.siblings or []
            if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in self.patterns)
        )
