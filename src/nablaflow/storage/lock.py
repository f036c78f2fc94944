"""One writer at a time in a run folder: a lock that the system lets go when its process dies.

``flock`` of the folder's marker: a writer's is its own alone, and who only looks takes one that
others may have as well, so that processes which look at the same moment do not take each other for
a writer. The marker's second line says who holds it; a third one, where several
processes were launched together, of which launch that is. `filelock` would empty the file on every
try, and with it the holder's name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nablaflow.errors import UserError

MARKER = ".nablaflow-run"
"""In every run folder: it says that nablaflow made the folder, and carries the lock."""

_TITLE = "A run folder of nablaflow.\n"
_LAUNCH = "launch "
_MOST = 500  # bytes of a marker that are read
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


def is_run(folder: Path) -> bool:
    """Whether nablaflow made the folder."""
    marker = folder / MARKER
    return marker.is_file() and not marker.is_symlink()


def check_free(folder: Path) -> None:
    """Find out whether another process writes to a folder; writes nothing.

    Raises:
        UserError: one does.
    """
    if is_run(folder) and os.access(folder / MARKER, os.W_OK):
        number = os.open(folder / MARKER, os.O_RDWR | os.O_NOFOLLOW)
        try:
            _lock(number, folder, fcntl.LOCK_SH)
        finally:
            os.close(number)


def is_held(folder: Path) -> bool:
    """Whether a process writes to a folder now."""
    try:
        check_free(folder)
    except UserError:
        return True
    return False


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only writer of an existing folder, which becomes a run folder if it was none.

    Raises:
        UserError: another process, or another run of this one, is it.
        OSError: the marker cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    number = os.open(folder / MARKER, flags, 0o666)
    try:
        if not _lock_alone(number, folder):
            print(
                f"output_dir: the file system of {folder} has no locks; see to it that no other "
                "process writes there",
                file=sys.stderr,
            )
        _sign(number)
        yield
    finally:
        os.close(number)  # and so is the lock gone


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Make a folder of results if need be, and let no other command write there meanwhile.

    The lock is on the folder itself, which has no marker.

    Raises:
        UserError: another command writes there, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        number = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out} ({error.strerror})") from error
    try:
        with suppress(OSError):  # no locks here
            _only_one(number, out)
        yield
    finally:
        os.close(number)


def _only_one(number: int, out: Path) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"--out: another command writes in {out}; wait for it to end, or give another folder"
        ) from None


def sign_launch(folder: Path, launch: str) -> None:
    """Add to a folder that is held which launch of several processes works there.

    Raises:
        OSError: the marker cannot be written.
    """
    number = os.open(folder / MARKER, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    try:
        os.write(number, f"{_LAUNCH}{launch}\n".encode())
    finally:
        os.close(number)


def forget_launch(folder: Path, launch: str) -> None:
    """Take a launch's name off a folder, which an older one of the same name has left there.

    Raises:
        OSError: the marker cannot be written.
    """
    if not is_of_launch(folder, launch):
        return
    number = os.open(folder / MARKER, os.O_RDWR | os.O_NOFOLLOW)
    try:
        lines = os.pread(number, _MOST, 0).splitlines(keepends=True)
        os.ftruncate(number, sum(len(line) for line in lines[:2]))
    finally:
        os.close(number)


def is_of_launch(folder: Path, launch: str) -> bool:
    """Whether the last to hold a folder was of this launch."""
    if not is_run(folder):
        return False
    lines = (folder / MARKER).read_text(errors="replace").splitlines()
    return f"{_LAUNCH}{launch}" in lines[2:]


def _lock_alone(number: int, folder: Path) -> bool:
    """Take a writer's lock; somebody who looks is waited for, since that takes no time."""
    while True:
        with suppress(UserError):
            return _lock(number, folder, fcntl.LOCK_EX)
        _lock(number, folder, fcntl.LOCK_SH)  # refused if a writer is there
        fcntl.flock(number, fcntl.LOCK_UN)


def _lock(number: int, folder: Path, kind: int) -> bool:
    """Take the lock; False where the file system has none."""
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"output_dir: {folder} is in use by {_holder(number)}; wait for it to end, or use "
            "another output_dir"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _sign(number: int) -> None:
    text = f"{_TITLE}process {os.getpid()} on {socket.gethostname()}\n".encode()
    os.pwrite(number, text, 0)
    os.ftruncate(number, len(text))


def _holder(number: int) -> str:
    lines = os.pread(number, _MOST, 0).decode(errors="replace").splitlines()
    told = "".join(c for c in lines[1] if c.isprintable()) if len(lines) > 1 else ""
    return told or "another process"
