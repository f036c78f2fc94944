"""The disk has a file's content before its name, and what was there before only goes after that."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from nablaflow.storage import checksums
from nablaflow.storage.checkpoint import Checkpoint, save_checkpoint
from nablaflow.storage.files import append_line, folder_fault, read_text, remedy, write_whole
from nablaflow.storage.header import in_order, is_whole, put_in_order


class Disk:
    """Watches what the system was asked to keep: a model of a disk whose power may be cut."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.kept: set[tuple[int, int]] = set()  # inodes, with their last change
        self.events: list[str] = []
        fsync, replace, unlink = os.fsync, os.replace, os.unlink

        def watched_fsync(number: int) -> None:
            fsync(number)
            self.kept.add(self.mark(os.fstat(number)))

        def watched_replace(source: Any, target: Any) -> None:
            if ".partial-step" in str(source) or ".partial-file" in str(source):
                self.events.append("named")
                for path in [Path(source), *Path(source).rglob("*")]:
                    assert self.mark(os.stat(path)) in self.kept, f"{path} may be empty"
            replace(source, target)

        def watched_unlink(path: Any, **given: Any) -> None:
            if "step-000001" in str(path) or (given and self.events):
                self.events.append("removed")
            unlink(path, **given)

        patch.setattr(os, "fsync", watched_fsync)
        patch.setattr(os, "replace", watched_replace)
        patch.setattr(os, "unlink", watched_unlink)

    @staticmethod
    def mark(found: os.stat_result) -> tuple[int, int]:
        return found.st_ino, found.st_mtime_ns

    def has(self, folder: Path) -> bool:
        return self.mark(os.stat(folder)) in self.kept


def checkpoint(update: int) -> Checkpoint:
    return Checkpoint(update, 1.0, {"policy": {"a": torch.ones(3)}}, {"b": torch.zeros(2)}, "x: 1")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        save_checkpoint(tmp_path, checkpoint(2), keep=2)
        assert disk.has(tmp_path / "checkpoints")


def test_the_checkpoint_before_goes_only_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        save_checkpoint(tmp_path, checkpoint(2), keep=1)
    assert disk.events[0] == "named"
    assert "removed" in disk.events
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


def test_a_whole_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        write_whole(tmp_path / "file", "text")
        assert disk.has(tmp_path)
    assert (tmp_path / "file").read_text() == "text"


def test_nothing_is_written_through_a_link(tmp_path: Path):
    target = tmp_path / "target"
    target.write_text("precious")
    for name in ("file", ".partial-file", "lines"):
        (tmp_path / name).symlink_to(target)
    write_whole(tmp_path / "file", "text")
    with pytest.raises(OSError, match=r"symbolic|links"):
        append_line(tmp_path / "lines", "text")
    assert target.read_text() == "precious"
    assert (tmp_path / "file").read_text() == "text"


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path: Path):
    tensors = {"b": torch.arange(5), "a": torch.rand(2, 3)}
    metadata = {"format": "pt", "lora_adapter_metadata": '{"r": 4}', "z": "ü"}
    found = {in_order(save(tensors, dict(reversed(metadata.items())))) for _ in range(8)}
    assert len(found) == 1
    (tmp_path / "file").write_bytes(found.pop())
    read = load_file(tmp_path / "file")
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == metadata


def test_every_flipped_bit_of_a_file_with_a_checksum_is_noticed(tmp_path: Path):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(save({"a": torch.arange(3.0)}, {"format": "pt", "own": "{}"}))
    put_in_order(path)
    whole = path.read_bytes()
    assert is_whole(path)
    assert torch.equal(load_file(path)["a"], torch.arange(3.0))
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not is_whole(path), place


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for read in (read_text, checksums.of_file):
            with pytest.raises(OSError, match="no file"):
                read(path)
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)


def test_a_text_is_read_without_a_mark_up_to_a_size(tmp_path: Path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(tmp_path / "text") == "one\ntwo\nthree\n"
    with pytest.raises(ValueError, match="more than 0 MiB"):
        read_text(tmp_path / "text", most=3)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the system says of a full disk, or of a file beyond a limit, has no name in it."""

    def full(number: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="File too large") as raised:
        write_whole(tmp_path / "report.html", "text")
    assert raised.value.filename == str(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_a_checkpoint_is_for_whom_the_users_files_are(tmp_path: Path, umask: int):
    """Those who may read a run's other files may read its weights, and nobody else."""
    before = os.umask(umask)
    try:
        tensors = {"policy": {"w": torch.zeros(1)}}
        folder = save_checkpoint(tmp_path, Checkpoint(1, 0.0, tensors, {}), keep=1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_a_link_to_nothing_is_no_folder(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "a link to what is not there" in (folder_fault(tmp_path / "link") or "")
    (tmp_path / "gone").mkdir()
    assert folder_fault(tmp_path / "link") is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "free some space"),
        (RuntimeError("a write failed (os error 28)"), "free some space"),
        (RuntimeError("a write failed"), "free some space"),
        (OSError(errno.EXDEV, os.strerror(errno.EXDEV)), "put that right"),
    ],
)
def test_room_is_asked_for_unless_the_system_says_otherwise(error: Exception, told: str):
    assert remedy(error) == told
