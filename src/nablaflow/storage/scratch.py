"""A folder for what is tried and thrown away, which a killed process leaves to the next one."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nablaflow.errors import UserError
from nablaflow.storage.files import append_line, put_in_place, what_failed, write_whole

PREFIX = ".nablaflow-scratch-"


@contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A folder on the disk of ``place`` that is gone at the end, one left by a dead process too.

    A folder is its process's as long as that has the lock on it. Where a file system has no locks,
    folders that are left stay.
    """
    remove_left(place)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=PREFIX))
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # no locks here
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(number)
        shutil.rmtree(folder)


def remove_left(place: Path) -> None:
    """Remove the folders that dead processes have left in a place."""
    for left in place.glob(f"{PREFIX}*"):
        _remove_if_left(left)


def _remove_if_left(folder: Path) -> None:
    with suppress(OSError):  # a link, another user's, in use, or gone meanwhile
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if any(folder.iterdir()):  # an empty one may have been made a moment ago
                shutil.rmtree(folder)
        finally:
            os.close(number)


def check_holds(place: Path) -> None:
    """Find out whether a place takes what a run writes, which its permissions do not always tell.

    Raises:
        UserError: so it does not, as ``/proc``, or a store of objects that looks like a disk.
    """
    made = False
    try:
        with scratch_folder(place) as folder:
            made = True
            _write_as_a_run(folder)
    except OSError as error:
        what = "a run's files cannot be written" if made else "no folder can be made"
        raise UserError(
            f"output_dir: {what} in {place} ({what_failed(error)}); give another place"
        ) from error


def _write_as_a_run(folder: Path) -> None:
    """A file in place of another and longer by a line, and a folder in place of another."""
    file, partial, final = (folder / name for name in ("file", "partial", "final"))
    file.touch()
    write_whole(file, "line\n")
    append_line(file, "line")
    for place in (partial, final):
        place.mkdir()
        (place / "file").touch()
    put_in_place(partial, final)


def check_room(place: Path, sizes: Sequence[int]) -> None:
    """Find out whether the files of a checkpoint fit a place; room is asked for, none is filled.

    Args:
        sizes: bytes of each.

    Raises:
        UserError: they do not; or the system allows no file so large.
    """
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None:  # a system that cannot be asked
        return
    try:
        with ExitStack() as stack:
            for size in sizes:
                file = stack.enter_context(tempfile.TemporaryFile(dir=place))
                reserve(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # nor can this disk
            return
        raise UserError(
            f"output_dir: a checkpoint of {sum(sizes) / 1e6:.3g} MB cannot be written in {place} "
            f"({error.strerror}); free some space, raise the limit, or give another place"
        ) from error
