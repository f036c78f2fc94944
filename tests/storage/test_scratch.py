"""A folder of things to throw away: its own process's while that lives, nobody's after that."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nablaflow.errors import UserError
from nablaflow.storage.scratch import PREFIX, check_holds, check_room, scratch_folder


def begin_and_die(place: Path) -> None:
    """A process that is killed in the middle of its work."""
    child = os.fork()
    if child == 0:
        with scratch_folder(place) as folder:
            (folder / "weights").write_bytes(b"0")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_nothing_is_left(tmp_path: Path):
    with scratch_folder(tmp_path) as folder:
        (folder / "weights").write_bytes(b"0")
    with pytest.raises(ValueError, match="wrong"), scratch_folder(tmp_path):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_goes_with_the_next(tmp_path: Path):
    begin_and_die(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_use_or_another_s_stays(tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("mine")
    link = tmp_path / f"{PREFIX}link"
    link.symlink_to(other)
    with scratch_folder(tmp_path) as first:
        (first / "weights").write_bytes(b"0")
        with scratch_folder(tmp_path) as second:
            assert {first, second, link, other} == set(tmp_path.iterdir())
    assert (link / "mine").read_text() == "mine"


def test_a_place_that_takes_no_folder_is_told_by_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As ``/proc``, in which root may do everything by its permissions."""
    check_holds(tmp_path)
    assert list(tmp_path.iterdir()) == []

    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(UserError, match=r"^output_dir: no folder can be made in .* \(No such file"):
        check_holds(tmp_path)


@pytest.mark.parametrize("fails", ["a file's name", "a folder's name", "a longer file"])
def test_a_place_that_takes_no_files_of_a_run_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    """As a store of objects, which has no names to change and no files that grow."""
    replace, opened = os.replace, os.open

    def renamed(old: Path, new: Path) -> None:
        if fails == ("a folder's name" if Path(old).is_dir() else "a file's name"):
            raise OSError(errno.ENOTSUP, "Operation not supported")
        replace(old, new)

    def open_unless_longer(path: Path, flags: int, *mode: int, **more: int | None) -> int:
        if flags & os.O_APPEND and fails == "a longer file":
            raise OSError(errno.ENOTSUP, "Operation not supported")
        return opened(path, flags, *mode, **more)

    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "open", open_unless_longer)
    line = r"^output_dir: a run's files cannot be written in .* \(Operation not supported\); give"
    with pytest.raises(UserError, match=line):
        check_holds(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_files() -> Iterator[int]:
    """The system allows files of so many bytes, as by a shell's ``ulimit -f``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield 1 << 20
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_larger_than_the_system_allows_is_told_before_it_is_written(
    tmp_path: Path, small_files: int
):
    check_room(tmp_path, [small_files] * 3)
    with pytest.raises(
        UserError, match=r"^output_dir: a checkpoint of 1\.05 MB .*\(File too large"
    ):
        check_room(tmp_path, [1, small_files + 1])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_asked_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    check_room(tmp_path, [1])
    monkeypatch.delattr(os, "posix_fallocate")
    check_room(tmp_path, [1])
