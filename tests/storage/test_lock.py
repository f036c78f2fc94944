"""One writer at a time, for as long as its process lives."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nablaflow.errors import UserError
from nablaflow.storage.lock import MARKER, alone, check_free, held, is_run

HOLD = """
import sys
from pathlib import Path
from nablaflow.storage.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path):
    with held(tmp_path):
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .*another output_dir"):
            check_free(tmp_path)
        with pytest.raises(UserError, match="in use"), held(tmp_path):
            pass
    check_free(tmp_path)
    assert is_run(tmp_path)


def test_who_looks_is_taken_for_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each process of a launch looks before the first of them writes, and so does the studio."""
    with held(tmp_path):
        pass
    take, tries = fcntl.flock, []
    looks = os.open(tmp_path / MARKER, os.O_RDWR)
    take(looks, fcntl.LOCK_SH)
    check_free(tmp_path)

    def flock(number: int, kind: int) -> None:
        tries.append(kind)
        if len(tries) == 4:  # by then it has looked
            os.close(looks)
        take(number, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path), pytest.raises(UserError, match="in use"):
        check_free(tmp_path)
    assert len(tries) == 5


def test_the_system_lets_go_when_the_process_is_killed(tmp_path: Path):
    source = str(Path(__file__).parents[2] / "src")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} "):
        check_free(tmp_path)
    holder.kill()
    holder.communicate()
    with held(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / MARKER).read_text()


def test_a_file_system_without_locks_is_named_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with held(tmp_path):
        assert "has no locks" in capsys.readouterr().err


def test_looking_leaves_no_trace(tmp_path: Path):
    check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_results_is_one_commands_at_a_time(tmp_path: Path):
    out = tmp_path / "new" / "out"
    with alone(out):
        with pytest.raises(UserError, match=r"^--out: another command writes in .*out; wait"):
            alone(out).__enter__()
        assert list(out.iterdir()) == []
    with alone(out):
        pass


def test_a_folder_of_results_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone(tmp_path / "out"), alone(tmp_path / "out"):  # nobody can tell one from two
        assert (tmp_path / "out").is_dir()
