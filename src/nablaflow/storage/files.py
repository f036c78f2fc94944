"""Files that are whole or not there: written beside, on the disk before they take their name.

A name that a disk has and content that it has not is what a power cut leaves of a file that was
only closed; so content is synchronized before the name, and the name's folder after it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial-"
SET_ASIDE = f"{PARTIAL}old-"  # until what replaces it has its name
_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors says it


def read_text(path: Path, most: int = 1 << 22) -> str:
    """A UTF-8 text file, each line's end a newline, without the mark that some editors put first.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read; what is no file, such as a pipe, is not waited for.
        ValueError: it is not UTF-8, or larger.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(number, "rb") as file:
        found = os.fstat(number)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))
        if found.st_size > most:
            raise ValueError(f"it has more than {most >> 20} MiB")
        text = file.read().decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def folder_fault(folder: Path) -> str | None:
    """Why no file could be written in a folder, made if need be; None: nothing is known against it.

    The nearest folder that exists decides. Nothing is written.
    """
    try:
        found = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except (OSError, ValueError) as error:
        return f"no folder can have this name ({getattr(error, 'strerror', None) or error})"
    if folder.is_symlink() and found != folder:
        return f"cannot write {folder} (it is a link to what is not there)"
    if not found.is_dir():
        return f"cannot write {folder} ({found} is not a directory)"
    if not os.access(found, os.W_OK | os.X_OK):
        return f"cannot write {folder} (no permission in {found})"
    return None


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's names; a folder may be a link."""
    kind = os.O_DIRECTORY if path.is_dir() else os.O_NOFOLLOW
    number = os.open(path, os.O_RDONLY | kind)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, wait for the disk, then rename; never through a symbolic link."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    partial.unlink(missing_ok=True)
    data = content.encode() if isinstance(content, str) else content
    try:
        with _fresh(partial) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk's has none
        raise
    sync(path.parent)


def what_failed(error: BaseException) -> str:
    """What the system said when writing failed, without the words of the library that wrote."""
    return system_says(error) or "it was refused"


def remedy(error: BaseException) -> str:
    """What is to be done about a disk that did not take a file: room is what it mostly lacks."""
    said = system_says(error)
    return "free some space" if said is None or said in _FULL else "put that right"


def system_says(error: BaseException) -> str | None:
    """The system's own words in an error or what led to it; None: the system had no part in it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    number = _OS_ERROR.search(str(error))
    return os.strerror(int(number[1])) if number else None


def append_line(path: Path, line: str) -> None:
    """One more line; what it is worth without `sync` is for the caller to know."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    number = os.open(path, flags, 0o666)
    with os.fdopen(number, "ab") as file:
        file.write(line.encode() + b"\n")


def put_in_place(partial: Path, final: Path) -> None:
    """A folder that was written beside takes its name; what had the name is removed after that."""
    mode = stat.S_IMODE(partial.stat().st_mode) & 0o666
    for folder, _, names in os.walk(partial):
        for name in names:
            _open_to(Path(folder) / name, mode)
            sync(Path(folder) / name)
        sync(Path(folder))
    old = final.with_name(SET_ASIDE + final.name)
    remove_tree(old)
    if os.path.lexists(final):
        os.replace(final, old)
    os.replace(partial, final)
    sync(final.parent)
    remove_tree(old)


def _open_to(path: Path, mode: int) -> None:
    """Give a file the mode that the user's umask leaves any other: safetensors' is its own."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with suppress(PermissionError):  # of a file system that has no modes
            path.chmod(mode)


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there; what a link points to stays."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextmanager
def _fresh(path: Path) -> Iterator[BinaryIO]:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with os.fdopen(number, "wb") as file:
        yield file
