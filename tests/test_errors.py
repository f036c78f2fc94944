"""What is raised when the user can mend it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import nablaflow as nf
from nablaflow.errors import ARGUMENTS, as_arguments, as_told, in_python
from nablaflow.runs.stopping import Interrupted

SPOKEN = (nf.align, nf.evaluate, nf.sample, nf.compare, nf.Run.export)


@pytest.mark.parametrize(
    ("said", "argument"),
    [
        ("go on with --resume", "go on with resume=True"),
        ("--overwrite: x holds no run", "overwrite=True: x holds no run"),
        ("leave --resume out to start one", "leave resume=True out to start one"),
        ("use --n 64 or more (--n)", "use n=64 or more (n)"),
        ("give --trust-run", "give trusted=True"),
        ("--out: ./--out is a file", "out: ./--out is a file"),
        ("torchrun --nproc-per-node 2, --overwrite-all", None),
    ],
)
def test_an_option_of_the_command_line_is_an_argument_in_python(said: str, argument: str | None):
    assert as_arguments(said) == (argument or said)


def test_every_argument_is_one():
    known = {name for function in SPOKEN for name in inspect.signature(function).parameters}
    assert set(ARGUMENTS.values()) <= known


def test_messages_of_python_name_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.txt").write_text("kept")
    asked = {"reward": "warmth", "prompts": ["a circle"], "method": nf.TerminalMatching(beta=1.0)}
    with pytest.raises(nf.UserError, match=r"use resume=True, overwrite=True or another folder"):
        nf.align(**asked, output_dir=tmp_path)
    with pytest.raises(nf.UserError, match=r"^resume=True: .* holds no run; leave resume=True out"):
        nf.align(**asked, output_dir=tmp_path / "none", resume=True)
    with pytest.raises(nf.UserError, match=r"^out: .*mine\.txt is not a directory"):
        nf.sample("nano", out=tmp_path / "mine.txt")

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("stopped after update 2; go on with --resume")

    monkeypatch.setattr("nablaflow.api.align.run", stopped)
    with pytest.raises(nf.Interrupted, match=r"^stopped after update 2; go on with resume=True$"):
        nf.align(**asked, output_dir=tmp_path / "stopped")


def test_notes_of_python_name_its_arguments_too():
    note = "reference bank: 8 images are looked at; without --n all are"

    @in_python
    def inner(deeper: bool) -> str:
        return inner(False) if deeper else as_told(note)

    assert inner(True).endswith("without n all are")
    assert as_told(note) == note, "and the command line's its own, afterwards"
